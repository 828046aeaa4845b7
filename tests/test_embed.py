import io
import json
import os
import shutil
import stat
import sys
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from selfdistill import embed as module
from selfdistill import tensor_files
from selfdistill.cli import main
from selfdistill.modalities.backbone import Backbone
from selfdistill.pretrained import Pretrained, load_pretrained

RATE = 4000
DEPTH, WIDTH, STEPS = 2, 16, 2
COMMON: dict[str, Any] = {
    "model": {"width": WIDTH, "depth": DEPTH, "heads": 2, "dropout": 0.5, "drop_path": 0.3},
    "objective": {"average_top_k_layers": 1},
    "teacher": {"ema_decay": 0.5, "ema_end_decay": 0.5, "scope": "all"},
    "optim": {"lr": 1e-2, "warmup_steps": 0},
    "train": {"steps": STEPS, "batch_size": 4},
    "log": {"tensorboard": False},
}
OWN: dict[str, dict[str, Any]] = {
    "audio": {
        "encoder": {
            "conv_layers": [[8, 10, 5], [8, 4, 4]],
            "position_width": 9,
            "position_depth": 2,
            "position_groups": 2,
        },
        "mask": {"mask_length": 3},
        "input": {"sampling_rate": RATE, "max_seconds": 0.2},
    },
    "image": {
        "encoder": {"patch_size": 4},
        "mask": {"num_patches": 4, "min_block": 1},
        "input": {"size": [8, 12]},
        "model": {"norm_order": "pre", "layer_scale": 0.1},
    },
    "text": {
        "encoder": {"vocab_size": 28},
        "mask": {"mask_length": 2},
        "input": {"max_tokens": 24},
    },
}
MODALITIES = tuple(OWN)
EXTENSION = {"audio": "wav", "image": "png", "text": "txt"}
LENGTHS = (3, 9, 5, 12, 7, 4, 8)
"""Of the inputs; the last batch of 3 is not full, and every batch is padded."""


def content(modality: str, length: int) -> bytes:
    rng = np.random.default_rng(length)
    out = io.BytesIO()
    if modality == "text":
        return " ".join(rng.choice(["bala", "kodi", "mune", "sepa", "tufo"], length)).encode()
    if modality == "audio":
        soundfile.write(out, 0.1 * rng.normal(size=60 * length), RATE, format="WAV")
    else:
        pixels = rng.integers(0, 255, (length + 4, 10, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def write_shard(path: Path, samples: Mapping[str, Mapping[str, bytes]]) -> str:
    with tarfile.open(path, "w") as tar:
        for key, members in samples.items():
            for extension, data in members.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return str(path)


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Modality to the folder of a short run."""
    made: dict[str, str] = {}

    def of(modality: str) -> str:
        if modality not in made:
            folder = tmp_path_factory.mktemp(f"embed-{modality}")
            extension = EXTENSION[modality]
            samples = {f"s{n}": {extension: content(modality, n)} for n in range(4, 16)}
            config = {**COMMON, "modality": modality, "run_dir": str(folder / "run")}
            for section, values in OWN[modality].items():
                config[section] = {**config.get(section, {}), **values}
            config["data"] = {"train": [write_shard(folder / "t.tar", samples)], "workers": 0}
            (folder / "c.yaml").write_text(yaml.safe_dump(config))
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("ACCELERATE_USE_CPU", "true")
                AcceleratorState._reset_state(reset_partial_state=True)
                assert main(["pretrain", str(folder / "c.yaml")]) == 0
                AcceleratorState._reset_state(reset_partial_state=True)
            made[modality] = str(folder / "run")
        return made[modality]

    return of


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], dict[str, bytes]]:
    """Modality to inputs named by their keys, which lie in ``in`` in the current folder."""
    monkeypatch.chdir(tmp_path)

    def of(modality: str) -> dict[str, bytes]:
        Path("in").mkdir()
        contents = [content(modality, length) for length in LENGTHS]
        if modality == "text":
            Path("in/t.txt").write_bytes(b"\n".join(contents))
            return {f"in/t.txt:{n}": data for n, data in enumerate(contents, 1)}
        named = {f"in/{n}.{EXTENSION[modality]}": data for n, data in enumerate(contents)}
        for name, data in named.items():
            Path(name).write_bytes(data)
        return named

    return of


@dataclass(frozen=True)
class Written:
    tensors: dict[str, Tensor]
    metadata: dict[str, str]

    @property
    def keys(self) -> list[str]:
        keys: list[str] = json.loads(self.metadata["keys"])
        return keys


def read(path: str = "f.safetensors") -> Written:
    with safe_open(path, "pt") as file:
        return Written(load_file(path), file.metadata())


def embed(model: str, *words: str, out: str = "f.safetensors") -> Written:
    assert main(["embed", model, *words, "--out", out, "--device", "cpu"]) == 0
    return read(out)


def alone(pretrained: Pretrained, modality: str, data: bytes) -> list[Tensor]:
    """[T, D] of each layer of one input, which is not padded."""
    pipeline = pretrained.modality.build_pipeline(pretrained.config)
    example = pipeline.plain(pipeline.decode({EXTENSION[modality]: data}))
    batch = pipeline.collate([example], None)
    states, padding = pretrained.backbone.hidden_states(batch.inputs, batch.lengths)
    assert padding is None or not padding.any()
    return [state[0] for state in states]


@pytest.mark.parametrize("modality", MODALITIES)
def test_means_are_those_of_each_input_alone(
    modality: str, run: Callable[[str], str], inputs: Callable[[str], dict[str, bytes]]
) -> None:
    given = inputs(modality)
    found = embed(run(modality), "in", "--layers", "all", "--batch-size", "3")
    assert sorted(found.tensors) == [f"layer_{i}" for i in range(DEPTH + 1)]
    assert found.metadata == {
        "keys": json.dumps(list(given)),
        "model": run(modality),
        "weights": "student",
        "step": str(STEPS),
        "pool": "mean",
        "modality": modality,
    }
    expected = [alone(load_pretrained(run(modality)), modality, data) for data in given.values()]
    tokens = [len(layers[0]) for layers in expected]
    assert len(set(tokens)) == (1 if modality == "image" else len(LENGTHS))
    for i in range(DEPTH + 1):
        layer = found.tensors[f"layer_{i}"]
        assert (layer.dtype, layer.shape) == (torch.float32, (len(LENGTHS), WIDTH))
        wanted = torch.stack([layers[i].mean(dim=0) for layers in expected])
        torch.testing.assert_close(layer, wanted, atol=1e-5, rtol=0)
        assert wanted.std(dim=0).max() > 1e-3  # inputs can be told apart


@pytest.mark.parametrize("modality", MODALITIES)
def test_without_pooling_every_valid_position_is_kept(
    modality: str, run: Callable[[str], str], inputs: Callable[[str], dict[str, bytes]]
) -> None:
    given = inputs(modality)
    found = embed(run(modality), "in", "--pool", "none", "--batch-size", "3", "--layers", "2,0,2")
    assert sorted(found.tensors) == ["layer_0", "layer_2", "lengths"]
    expected = [alone(load_pretrained(run(modality)), modality, data) for data in given.values()]
    assert found.tensors["lengths"].dtype == torch.int64
    assert found.tensors["lengths"].tolist() == [len(layers[0]) for layers in expected]
    for i in (0, 2):
        wanted = torch.cat([layers[i] for layers in expected])
        torch.testing.assert_close(found.tensors[f"layer_{i}"], wanted, atol=1e-5, rtol=0)
    assert found.metadata["pool"] == "none"


@pytest.mark.parametrize("where", ["padding_in_positions", "padding_in_features"])
def test_padding_that_leaks_is_avoided(
    where: str,
    run: Callable[[str], str],
    inputs: Callable[[str], dict[str, bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inputs("audio")
    found = load_pretrained(run("audio"))
    compat = replace(found.config.compat, **{where: True})
    leaking = replace(found, config=replace(found.config, compat=compat))
    leaking.backbone.encoder.compat = compat
    monkeypatch.setattr(module, "load_pretrained", lambda *_, **__: leaking)
    many = embed("any", "in", "--batch-size", "7", out="many.safetensors")
    one = embed("any", "in", "--batch-size", "1", out="one.safetensors")
    assert (many.tensors["layer_2"] - one.tensors["layer_2"]).abs().max() < 1e-5


def test_student_and_teacher_differ_and_the_last_layer_is_the_default(
    run: Callable[[str], str], inputs: Callable[[str], dict[str, bytes]]
) -> None:
    given = inputs("image")
    student = embed(run("image"), "in", out="s.safetensors")
    teacher = embed(run("image"), "in", "--weights", "teacher", out="t.safetensors")
    assert list(teacher.tensors) == [f"layer_{DEPTH}"]
    assert (student.tensors["layer_2"] - teacher.tensors["layer_2"]).abs().max() > 1e-4
    assert teacher.metadata["weights"] == "teacher"
    pretrained = load_pretrained(run("image"), "teacher")
    wanted = torch.stack([alone(pretrained, "image", d)[-1].mean(dim=0) for d in given.values()])
    torch.testing.assert_close(teacher.tensors["layer_2"], wanted, atol=1e-5, rtol=0)


def test_labels_of_shards_if_all_have_one(
    run: Callable[[str], str], inputs: Callable[[str], dict[str, bytes]]
) -> None:
    first = inputs("image")["in/0.png"]
    labelled = {f"k{n}": {"png": content("image", n), "cls": b"%d" % n} for n in (5, 2, 9)}
    shard = write_shard(Path("s.tar"), labelled)
    found = embed(run("image"), shard, out="s.safetensors")
    assert found.keys == ["k5", "k2", "k9"]
    assert found.tensors["labels"].dtype == torch.int64
    assert found.tensors["labels"].tolist() == [5, 2, 9]
    mixed = embed(run("image"), "in/0.png", shard, "in/1.png", "--batch-size", "2")
    assert mixed.keys == ["in/0.png", "k5", "k2", "k9", "in/1.png"]
    assert list(mixed.tensors) == ["layer_2"]
    torch.testing.assert_close(
        mixed.tensors["layer_2"][1:4], found.tensors["layer_2"], atol=1e-5, rtol=0
    )
    wanted = alone(load_pretrained(run("image")), "image", first)[-1].mean(dim=0)
    torch.testing.assert_close(mixed.tensors["layer_2"][0], wanted, atol=1e-5, rtol=0)


def test_labels_that_only_some_have_are_told(
    run: Callable[[str], str],
    inputs: Callable[[str], dict[str, bytes]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    inputs("image")
    classes: dict[str, dict[str, bytes]] = {"a": {"cls": b"4"}, "b": {"cls": b"cat"}, "c": {}}
    model = run("image")
    said = "2 of 3 inputs have no label (an integer in a .cls member); labels are not written"
    for keys, told in (("a", []), ("bc", []), ("abc", [said])):
        given = {key: {"png": content("image", 5), **classes[key]} for key in keys}
        caplog.clear()
        found = embed(model, write_shard(Path("s.tar"), given), out=f"{keys}.safetensors")
        assert caplog.messages == told
        assert ("labels" in found.tensors) == (keys == "a")


def test_bad_inputs_are_skipped_named_and_counted(
    run: Callable[[str], str],
    inputs: Callable[[str], dict[str, bytes]],
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    given = inputs("audio")
    run("audio")
    Path("in/1.wav").write_bytes(b"no audio")
    Path("in/6.wav").write_bytes(content("audio", 0))
    shard = write_shard(Path("s.tar"), {"e": {"wav": b"", "cls": b"1"}})
    capsys.readouterr()
    caplog.clear()
    found = embed(run("audio"), "in", shard, "--batch-size", "2", "--layers", "0,2")
    assert found.keys == [key for key in given if key not in ("in/1.wav", "in/6.wav")]
    assert len(found.tensors["layer_0"]) == 5
    first, second, third = (record.message for record in caplog.records)
    assert first.startswith("in/1.wav is skipped: undecodable audio (")
    assert second.startswith("in/6.wav is skipped: audio shorter than the feature encoder")
    assert third == "e is skipped: empty audio"
    printed = capsys.readouterr()
    assert printed.out == (
        "embedded 5 inputs: layer_0, layer_2 of shape [5, 16] in f.safetensors; "
        "3 skipped, 0 cropped\n"
    )
    assert "8 inputs in " in printed.err
    assert " inputs/s\n" in printed.err


@pytest.mark.parametrize(("modality", "most"), [("audio", 13), ("text", 22)])
def test_cropped_inputs_are_counted(
    modality: str,
    most: int,
    run: Callable[[str], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """``most`` is what just fits: 780 of 800 samples; 22 tokens between <s> and </s>."""
    model = run(modality)
    monkeypatch.chdir(tmp_path)
    for name, length in (("a", most), ("b", most + 1), ("c", 60)):
        # a word that is not in the vocabulary is a token, and so is the space in front of it
        words = b"? " * (length // 2) + b"?" * (length % 2)
        data = content(modality, length) if modality == "audio" else words
        Path(f"{name}.{EXTENSION[modality]}").write_bytes(data)
    capsys.readouterr()
    caplog.clear()
    embed(model, *sorted(str(path) for path in Path().iterdir()))
    assert capsys.readouterr().out.endswith("; 0 skipped, 2 cropped\n")
    (warning,) = (record.message for record in caplog.records)
    assert warning.startswith("b.")
    assert warning.endswith("is longer than the model takes; its end is left out")


def test_empty_lines_are_skipped_and_nothing_is_written_of_nothing(
    run: Callable[[str], str],
    inputs: Callable[[str], dict[str, bytes]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    inputs("text")
    Path("a.txt").write_text("bala kodi\n \nmune\n")
    assert embed(run("text"), "a.txt", out="a.safetensors").keys == ["a.txt:1", "a.txt:3"]
    Path("b.txt").write_text("\n\n")
    assert main(["embed", run("text"), "b.txt", "--out", "b.safetensors"]) == 2
    assert "INPUT: none of 2 inputs could be used" in capsys.readouterr().err
    left = sorted(path.name for path in Path.cwd().iterdir())
    assert left == ["a.safetensors", "a.txt", "b.txt", "in"]


def test_features_that_are_not_finite_are_skipped(
    run: Callable[[str], str],
    inputs: Callable[[str], dict[str, bytes]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    given = inputs("text")
    plain = Backbone.hidden_states

    def broken(self: Backbone, *given: Any) -> tuple[list[Tensor], Tensor | None]:
        states, padding = plain(self, *given)
        states[1][0, 0, 3] = float("inf")
        return states, padding

    run("text")
    monkeypatch.setattr(Backbone, "hidden_states", broken)
    for pool in ("mean", "none"):
        caplog.clear()
        out = f"{pool}.safetensors"
        found = embed(
            run("text"), "in", "--layers", "all", "--batch-size", "3", "--pool", pool, out=out
        )
        keys = list(given)
        assert found.keys == [keys[i] for i in (1, 2, 4, 5)]
        skipped = [r.message for r in caplog.records if "skipped" in r.message]
        assert skipped == [
            f"{keys[i]} is skipped: its features are not finite (layer 1)" for i in (0, 3, 6)
        ]
        rows = 4 if pool == "mean" else int(found.tensors["lengths"].sum())
        assert all(len(found.tensors[f"layer_{i}"]) == rows for i in range(DEPTH + 1))


def test_reduced_precision_is_off_while_it_computes(
    run: Callable[[str], str],
    inputs: Callable[[str], dict[str, bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inputs("image")
    plain = Backbone.hidden_states
    seen = set()

    def watched(self: Backbone, *given: Any) -> tuple[list[Tensor], Tensor | None]:
        seen.add(torch.backends.cudnn.allow_tf32)
        return plain(self, *given)

    monkeypatch.setattr(Backbone, "hidden_states", watched)
    before = torch.backends.cudnn.allow_tf32
    embed(run("image"), "in")
    assert seen == {False}
    assert torch.backends.cudnn.allow_tf32 == before


def test_a_terminal_shows_a_bar(
    run: Callable[[str], str],
    inputs: Callable[[str], dict[str, bytes]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    inputs("image")
    Path("in/2.png").write_bytes(b"bad")
    run("image")
    capsys.readouterr()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    embed(run("image"), "in")
    printed = capsys.readouterr()
    last = printed.err.splitlines()[-1]
    assert " 7/7 " in last
    assert " inputs/s]" in last
    assert "inputs in" not in printed.err
    assert printed.out.startswith("embedded 6 inputs: ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none.png"], "INPUT: no file matches 'none.png'"),
        (["a.csv"], "'a.csv' is nothing that this model takes; give .jpg, .jpeg, .png, .webp, or"),
        (["in", "--layers", "0,3"], "--layers: there is no layer 3; this model has 0 to 2"),
        (["in", "--layers", "-1"], "--layers: there is no layer -1; this model has 0 to 2"),
        (["in", "--layers", "first"], "--layers: 'first' is neither last, all, nor numbers"),
        (["in", "--layers", "1,"], "--layers: '1,' is neither"),
        (["in", "--batch-size", "0"], "--batch-size: 0 must be 1 or more"),
        (["in", "--device", "cuda:99"], "--device: 'cuda:99' cannot be used ("),
        (["in", "--device", "meta"], "--device: 'meta' cannot be used ("),
        (["in", "--device", "abacus"], "--device: 'abacus' cannot be used ("),
        (["in", "--out", "old.safetensors"], "--out: 'old.safetensors' exists; remove it"),
        (["in", "--out", "f.npz"], "--out: 'f.npz' must end in .safetensors"),
        (["in", "--out", "no/f.safetensors"], "--out: there is no folder 'no'; make it first"),
    ],
)
def test_mistakes_are_refused_before_any_work(
    words: list[str],
    message: str,
    run: Callable[[str], str],
    inputs: Callable[[str], dict[str, bytes]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inputs("image")
    run("image")
    Path("a.csv").touch()
    Path("old.safetensors").write_bytes(b"old")
    monkeypatch.setattr(Backbone, "hidden_states", lambda *_: pytest.fail("has begun"))
    capsys.readouterr()
    assert main(["embed", run("image"), "--out", "f.safetensors", *words]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("selfdistill: ")
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["a.csv", "in", "old.safetensors"]
    assert Path("old.safetensors").read_bytes() == b"old"


def test_names_that_no_header_holds_are_refused(
    run: Callable[[str], str],
    inputs: Callable[[str], dict[str, bytes]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = inputs("image")
    run("image")
    longest = len(json.dumps(json.dumps(list(given))))
    monkeypatch.setattr(module, "NAMES_BYTES", longest - 1)
    assert main(["embed", run("image"), "in", "--out", "f.safetensors"]) == 2
    assert "INPUT: the names of 7 inputs are too long" in capsys.readouterr().err
    monkeypatch.setattr(module, "NAMES_BYTES", longest)
    assert embed(run("image"), "in").keys == list(given)


def test_a_folder_that_cannot_be_written_to_is_told_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    for command, name in (("embed", "f.safetensors"), ("report", "f.html"), ("probe", "f.json")):
        option, words = ("--json", []) if command == "probe" else ("--out", ["in"])
        assert main([command, "nothing", *words, option, name]) == 2
        assert f"{option}: cannot write to '.'; choose another" in capsys.readouterr().err


def test_a_failing_write_leaves_nothing(
    run: Callable[[str], str],
    inputs: Callable[[str], dict[str, bytes]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Nor does a kill at that moment, when it is run again."""
    inputs("image")
    run("image")
    killed = tmp_path_factory.mktemp("killed")

    def full(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
        assert not Path("f.safetensors").exists()
        path.write_bytes(b"half")
        path.with_name(".tmpBxQz").write_bytes(b"half")  # a name that safetensors chooses
        path.chmod(0o600)
        shutil.copytree(".", killed, dirs_exist_ok=True)
        raise SafetensorError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(tensor_files, "save_file", full)
        assert main(["embed", run("image"), "in", "--out", "f.safetensors"]) == 1
    assert "--out: cannot write 'f.safetensors': no space left" in capsys.readouterr().err
    assert [path.name for path in Path.cwd().iterdir()] == ["in"]
    monkeypatch.chdir(killed)
    embed(run("image"), "in")
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["f.safetensors", "in"]
    Path("plain").touch()
    modes = [stat.S_IMODE(Path(name).stat().st_mode) for name in ("f.safetensors", "plain")]
    assert modes[0] == modes[1]
