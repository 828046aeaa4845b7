"""A run starts from weights that exist: those of a run, or of a folder of transformers."""

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from modality_cases import EXPORTABLE, MODALITIES
from safetensors.torch import load_file, save_file
from small_runs import JOINT, STEPS, SmallRuns, below, checkpoint, fresh, same, saved
from tiny import DECODER, write_shard

from selfdistill import pretrained
from selfdistill.cli import main
from selfdistill.config import DecoderConfig, RunConfig
from selfdistill.errors import UserError
from selfdistill.initial_weights import InitialWeights
from selfdistill.modalities.base import load_modality
from selfdistill.objective.data2vec import Data2Vec
from selfdistill.objective.state import of_student
from selfdistill.pretrained import load_pretrained


@pytest.fixture
def moved(runs: SmallRuns, tmp_path: Path) -> Callable[[str], Path]:
    """Modality to a copy of its run; nothing in it says where it lies."""
    return lambda modality: runs.copy(modality, tmp_path / "moved")


def start(source: Path | str, config: RunConfig, run_dir: Path | None = None) -> InitialWeights:
    given = replace(config, init_from=str(source), run_dir=str(run_dir or config.run_dir))
    return InitialWeights(given)


def load(source: Path, model: Data2Vec, config: RunConfig) -> None:
    weights = start(source, config)
    weights.check()
    weights.load_into(model)


# --- what is named


@pytest.mark.parametrize("name", ["nowhere", "no/such/folder", "/no/weights.pt", "~no-such-user/x"])
def test_what_is_not_there(name: str, runs: SmallRuns) -> None:
    with pytest.raises(UserError, match=rf"^init_from: (there is no|cannot read) {name}"):
        start(name, runs.config("image"))


def test_a_name_that_is_too_long(runs: SmallRuns) -> None:
    with pytest.raises(UserError, match=r"^init_from: (cannot read|there is no) a{300}"):
        start("a" * 300, runs.config("image"))


def test_a_folder_that_is_neither(runs: SmallRuns, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^init_from: no checkpoint in"):
        start(tmp_path, runs.config("image"))


def test_the_weights_of_a_folder(runs: SmallRuns) -> None:
    folder = runs.exported("image")
    with pytest.raises(UserError, match=f"is a part of a folder .*; name the folder, {folder}$"):
        start(folder / "model.safetensors", runs.config("image"))


@pytest.mark.parametrize("modality", ["image", JOINT])
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "manifest.json"])
def test_a_file_of_a_checkpoint(name: str, modality: str, runs: SmallRuns) -> None:
    folder = checkpoint(runs.run("image"), STEPS)
    with pytest.raises(UserError, match=f"is a part of a checkpoint; name the folder, {folder}$"):
        start(folder / name, runs.config(modality))


def test_a_name_on_the_hub(runs: SmallRuns, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(name: str, key: str) -> Path:
        asked.append((name, key))
        return runs.exported("image")

    monkeypatch.setattr(pretrained, "download", download)
    assert start("someone/encoder", runs.config("image")).path == runs.exported("image")
    assert asked == [("someone/encoder", "init_from")]


# --- runs and folders of transformers


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_run(modality: str, runs: SmallRuns) -> None:
    config = runs.config(modality)
    model, run = fresh(config), runs.run(modality)
    load(run, model, config)
    assert same(model.state_dict(), saved(run, STEPS))
    load(checkpoint(run, 2), model, config)
    assert same(model.state_dict(), saved(run, 2))
    assert not same(saved(run, 2), saved(run, STEPS))


@pytest.mark.parametrize("modality", EXPORTABLE)
def test_a_folder_of_transformers(modality: str, runs: SmallRuns) -> None:
    """It gives the student; the teacher is a copy, the head and what it lacks are fresh."""
    config = runs.config(modality)
    model, untouched = fresh(config), fresh(config)
    load(runs.exported(modality), model, config)
    trained = dict(load_pretrained(str(runs.run(modality))).backbone.named_parameters())
    hub = load_modality(modality).hub
    assert hub is not None
    for name, tensor in model.student[modality].named_parameters():
        kept = name.startswith(tuple(pattern.rstrip("*") for pattern in hub.dropped))
        source = untouched.student[modality].get_parameter(name) if kept else trained[name]
        assert torch.equal(tensor, source), name
    student = dict(model.student.named_parameters())
    for name, tensor in model.teacher.named_parameters():
        assert torch.equal(tensor, student[name]), name
    assert same(model.predictors.state_dict(), untouched.predictors.state_dict())
    assert not same(model.student.state_dict(), untouched.student.state_dict())


MISMATCHES = [
    (
        "image",
        {
            "model.width=32": "model.width is 32 here and 16 there",
            "model.depth=3": "model.depth is 3 here and 2 there",
            "model.mlp_ratio=2.0": "model.mlp_ratio is 2.0 here and 4.0 there",
            "model.key_bias=true": "model.key_bias is True here and False there",
            "model.norm_order=post": "model.norm_order is post here and pre there",
            "model.norm_eps=1e-6": "model.norm_eps is 1e-06 here and 1e-05 there",
            "model.layer_scale=0": "model.layer_scale is 0 here and more than 0 there",
            "encoder.patch_size=2": "encoder.patch_size is 2 here and 4 there",
        },
    ),
    ("image", {"input.size=[32,32]": "input.size is [32, 32] here and [16, 16] there"}),
    (
        "audio",
        {
            "model.heads=4": "model.heads is 4 here and 2 there",
            "model.layer_scale=0.1": "model.layer_scale is more than 0 here and 0 there",
            "encoder.conv_bias=true": "encoder.conv_bias is True here and False there",
            "encoder.conv_layers=[[16,10,5],[16,4,2]]": "encoder.conv_layers is [[16, 10, 5], "
            "[16, 4, 2]] here and [[16, 10, 5], [16, 4, 4]] there",
            "encoder.position_depth=3": "encoder.position_depth is 3 here and 2 there",
            "encoder.position_groups=4": "encoder.position_groups is 4 here and 2 there",
        },
    ),
    (
        "text",
        {
            "encoder.vocab_size=40": "encoder.vocab_size is 40 here and 32 there",
            "encoder.mask_id=5": "encoder.mask_id is 5 here and 4 there",
            "input.max_tokens=25": "input.max_tokens is 25 here and 24 there",
        },
    ),
]


@pytest.mark.parametrize("kind", ["run", "folder"])
@pytest.mark.parametrize(("modality", "named"), MISMATCHES)
def test_every_mismatch_is_named(
    kind: str, modality: str, named: dict[str, str], runs: SmallRuns
) -> None:
    source = runs.run(modality) if kind == "run" else runs.exported(modality)
    config = runs.config(modality, *named)
    model = fresh(config)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError, match=r"^init_from: .* holds another encoder: ") as caught:
        load(source, model, config)
    for part in named.values():
        assert part in str(caught.value)
    assert str(caught.value).count(" here and ") == len(named)
    assert same(model.state_dict(), before)


def test_the_head_matters_to_a_run_only(runs: SmallRuns) -> None:
    config = runs.config("audio", "objective.head_layers=3")
    with pytest.raises(UserError, match=r"objective.head_layers is 3 here and 1 there"):
        load(runs.run("audio"), fresh(config), config)
    load(runs.exported("audio"), fresh(config), config)


@pytest.mark.parametrize("scope", ["all", "blocks"])
def test_a_teacher_of_another_scope_starts_as_the_student(scope: str, runs: SmallRuns) -> None:
    config = runs.config("audio", f"teacher.scope={scope}")
    model, source = fresh(config), saved(runs.run("audio"), STEPS)
    load(runs.run("audio"), model, config)
    student = model.student.state_dict()
    assert all(torch.equal(student[n], source[f"student.{n}"]) for n in student)
    assert all(torch.equal(t, student[n]) for n, t in model.teacher.state_dict().items())


@pytest.mark.parametrize("kind", ["run", "folder"])
def test_another_modality(kind: str, runs: SmallRuns, tmp_path: Path) -> None:
    """It is told before a tokenizer is trained for nothing."""
    source = runs.run("image") if kind == "run" else runs.exported("image")
    with pytest.raises(UserError, match=r"^init_from: .*modality is text here and image there"):
        start(source, runs.config("text"), tmp_path).check()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["run", "folder"])
def test_the_kernel_counts_not_the_width_that_it_is_rounded_from(
    kind: str, runs: SmallRuns
) -> None:
    source = runs.run("audio") if kind == "run" else runs.exported("audio")
    same_kernel = runs.config("audio", "encoder.position_width=8")  # the run's is 9
    load(source, fresh(same_kernel), same_kernel)
    other = runs.config("audio", "encoder.position_width=12")
    with pytest.raises(UserError, match=r"^init_from: .*\.positions\.convs\.0\.weight.*4"):
        load(source, fresh(other), other)


def test_the_ratio_counts_as_far_as_the_width_that_it_is_rounded_to(
    runs: SmallRuns, tmp_path: Path
) -> None:
    """A folder tells the width, 21 of 16 times 1.3."""
    words = ["model.mlp_ratio=1.3", "train.steps=1"]
    assert runs.pretrain("image", tmp_path / "run", *words) == 0
    assert main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 0
    config = runs.config("image", *words)
    model = fresh(config)
    load(tmp_path / "out", model, config)
    name = "student.trunk.blocks.0.mlp.fc1.weight"
    assert torch.equal(model.state_dict()[name], saved(tmp_path / "run", 1)[name])
    other = runs.config("image", "model.mlp_ratio=1.25")
    with pytest.raises(UserError, match=r"model.mlp_ratio is 1.25 here and 1.3125 there"):
        load(tmp_path / "out", fresh(other), other)


@pytest.mark.parametrize(
    ("modality", "words"),
    [
        ("image", ["model.drop_path=0.5", "model.layer_scale=0.3", "model.initializer=beit"]),
        ("audio", ["model.layer_drop=0.5", "encoder.input_dropout=0.4", "mask.mask_length=2"]),
        ("text", ["model.dropout=0.5", "optim.lr=1", "seed=5"]),
    ],
)
def test_what_training_alone_depends_on_is_free(
    modality: str, words: list[str], runs: SmallRuns, caplog: pytest.LogCaptureFixture
) -> None:
    config = runs.config(modality, *words)
    for source in (runs.run(modality), runs.exported(modality)):
        load(source, fresh(config), config)
    assert not [line for line in caplog.messages if "were made for" in line]


@pytest.mark.parametrize(
    ("modality", "word", "warning"),
    [
        ("image", "input.mean=[0.5,0.25,0.5]", "input.mean is (0.5, 0.25, 0.5), the weights were"),
        ("image", "input.std=[0.5,0.25,0.5]", "input.std is (0.5, 0.25, 0.5), the weights were"),
        ("audio", "input.normalize=false", "input.normalize is False, the weights were made for"),
        ("audio", "input.sampling_rate=8000", "input.sampling_rate is 8000, the weights were made"),
    ],
)
def test_another_input_of_the_same_shape_warns(
    modality: str,
    word: str,
    warning: str,
    runs: SmallRuns,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = runs.config(modality, word)
    with caplog.at_level(logging.WARNING):
        load(runs.exported(modality), fresh(config), config)
    told = [line for line in caplog.messages if "were made for" in line]
    assert len(told) == 1
    assert told[0].startswith(f"init_from: {warning}")


def test_what_a_folder_lacks_is_told(runs: SmallRuns, caplog: pytest.LogCaptureFixture) -> None:
    config = runs.config("image")
    load(runs.exported("image"), fresh(config), config)
    told = [line for line in caplog.messages if "keeps its first values" in line]
    assert [line.split()[1] for line in told] == ["trunk.norm.bias", "trunk.norm.weight"]


# --- several modalities, and strategies


def test_one_modality_starts_from_one_of_several(
    runs: SmallRuns, caplog: pytest.LogCaptureFixture
) -> None:
    """All that it has comes from there, and nothing of the others'."""
    source = saved(runs.run(JOINT), STEPS)
    for modality in MODALITIES:
        config = alone(runs, modality)
        model = fresh(config)
        load(runs.run(JOINT), model, config)
        state = model.state_dict()
        assert any(f".{modality}." in name for name in state)
        assert all(torch.equal(tensor, source[name]) for name, tensor in state.items())
    assert not caplog.messages


def alone(runs: SmallRuns, modality: str) -> RunConfig:
    """A run over one modality with the blocks of the one over all."""
    joint = runs.config(JOINT)
    words = [f"decoder.{key}={value}" for key, value in DECODER.items()]
    words += [f"model.{key}={getattr(joint.model, key)}" for key in ("norm_order", "layer_scale")]
    words += [f"model.key_bias={str(joint.model.key_bias).lower()}", "strategy=visible"]
    return runs.config(modality, *words)


def test_several_start_from_the_same_several(runs: SmallRuns) -> None:
    config = runs.config(JOINT, "modalities.text.mask.mask_prob=0.5", "optim.lr=1")
    model = fresh(config)
    load(runs.run(JOINT), model, config)
    assert same(model.state_dict(), saved(runs.run(JOINT), STEPS))
    differing = runs.config(JOINT, "modalities.image.encoder.patch_size=2")
    with pytest.raises(UserError, match=r"^modalities.image: init_from: .*patch_size is 2 here an"):
        load(runs.run(JOINT), fresh(differing), differing)


def test_other_sets_of_modalities(runs: SmallRuns) -> None:
    with pytest.raises(
        UserError, match=f"is of a run over text; a run over {', '.join(MODALITIES)} st"
    ):
        start(runs.run("text"), runs.config(JOINT)).check()
    joint = runs.config(JOINT)
    two = replace(joint, modalities={n: joint.modalities[n] for n in ("audio", "text")})
    with pytest.raises(UserError, match=r"over audio, image, .*; a run over audio, text starts"):
        start(runs.run(JOINT), two).check()
    pair = replace(joint, modality="video", modalities={})
    with pytest.raises(UserError, match=r"modality is video here and audio, image, .*there"):
        start(runs.run(JOINT), pair).check()


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_one_encoder_starts_no_run_over_several(kind: str, runs: SmallRuns, tmp_path: Path) -> None:
    source = runs.exported("text")
    if kind == "file":
        source = tmp_path / "model.safetensors"
        source.write_bytes(b"")
    with pytest.raises(UserError, match=r"^init_from: .* holds one encoder.*; start each modality"):
        start(source, runs.config(JOINT))


@pytest.mark.parametrize("modality", MODALITIES)
def test_another_strategy(modality: str, runs: SmallRuns, caplog: pytest.LogCaptureFixture) -> None:
    """What it needs besides is fresh, what it has no use for stays; both are told."""
    config = runs.config(modality, "strategy=visible", "decoder.groups=2", "decoder.width=8")
    model, untouched = fresh(config), fresh(config)
    load(runs.run(modality), model, config)
    source = saved(runs.run(modality), STEPS)
    for name, tensor in model.state_dict().items():
        new = name.startswith("predictors.")
        assert torch.equal(tensor, untouched.state_dict()[name] if new else source[name]), name
    fresh_ones, left = caplog.messages
    assert fresh_ones.startswith(f"init_from: predictors.{modality}.decoder.")
    assert fresh_ones.endswith(f" are not in {checkpoint(runs.run(modality), STEPS)} and are fresh")
    token = f"student.encoders.{modality}.mask_token"
    assert (token in left) == (modality != "text")
    assert f"predictors.{modality}.head." in left


def test_a_strategy_does_not_excuse_other_shapes(runs: SmallRuns) -> None:
    words = ["strategy=visible", "decoder.groups=2", "decoder.width=8"]
    config = runs.config("text", *words, "model.depth=3")
    with pytest.raises(UserError, match=r"model.depth is 3 here and 2 there"):
        load(runs.run("text"), fresh(config), config)
    wider = replace(alone(runs, "text"), decoder=DecoderConfig(16, 2, 3, 2))
    with pytest.raises(UserError, match=r"decoder.width is 16 here and 8 there"):
        load(runs.run(JOINT), fresh(wider), wider)


@pytest.mark.parametrize("modality", ["audio", "image"])
def test_a_folder_for_the_other_strategy(
    modality: str, runs: SmallRuns, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The mask token is in nobody's way."""
    visible = ["strategy=visible", "decoder.groups=2", "decoder.width=8"]
    dense, config = runs.config(modality), runs.config(modality, *visible)
    load(runs.exported(modality), fresh(config), config)
    wanted = f"init_from: encoder.mask_token of {runs.exported(modality)} has no place here"
    assert any(line.startswith(wanted) for line in caplog.messages)
    assert runs.pretrain(modality, tmp_path / "run", "train.steps=1", *visible) == 0
    assert main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 0
    model = fresh(dense)
    load(tmp_path / "out", model, dense)
    trained, loaded = saved(tmp_path / "run", 1), model.state_dict()
    for name in (f"student.encoders.{modality}.local", "student.trunk.blocks"):
        assert same(below(name, loaded), below(name, trained))


def test_fixed_positions_are_found_in_a_folder(runs: SmallRuns, tmp_path: Path) -> None:
    """The class has none but learned ones, which somebody may have trained."""
    words = ["encoder.positions=sincos", "train.steps=1"]
    assert runs.pretrain("image", tmp_path / "run", *words) == 0
    out = tmp_path / "out"
    assert main(["export", str(tmp_path / "run"), "--out", str(out)]) == 0
    config = runs.config("image", *words)
    model = fresh(config)
    load(out, model, config)
    name = "student.encoders.image.local.proj.weight"
    assert torch.equal(model.state_dict()[name], saved(tmp_path / "run", 1)[name])
    tensors = load_file(out / "model.safetensors")
    tensors["embeddings.position_embeddings"] += 0.1
    save_file(tensors, out / "model.safetensors")
    with pytest.raises(UserError, match=r"^init_from: .*positions is not the fixed one of the"):
        load(out, fresh(config), config)
    learned = runs.config("image", "encoder.positions=learned")
    load(out, fresh(learned), learned)


# --- the tokenizer goes with the weights

TOKENIZER = "tokenizer.json"


def write_other_words(folder: Path) -> str:
    """Shards from which another tokenizer would be trained."""
    syllables = ("da", "ba", "nu", "ke", "pe", "mo", "sa", "du")
    passages = [" ".join(first + second for second in syllables) for first in syllables] * 3
    return str(write_shard(folder / "other.tar", [{"txt": text.encode()} for text in passages]))


@pytest.mark.parametrize("kind", ["run", "folder"])
def test_the_tokenizer_comes_with_the_weights(kind: str, runs: SmallRuns, tmp_path: Path) -> None:
    source = runs.run("text") if kind == "run" else runs.exported("text")
    data = f"data.train=[{write_other_words(tmp_path)}]"
    for name, words in (("alone", []), ("new", [f"init_from={source}"])):
        assert runs.pretrain("text", tmp_path / name, data, *words) == 0
    brought = (tmp_path / "new" / TOKENIZER).read_bytes()
    assert brought == (source / TOKENIZER).read_bytes()
    assert brought != (tmp_path / "alone" / TOKENIZER).read_bytes()
    used = load_pretrained(str(tmp_path / "new")).config.input.tokenizer
    assert used == str(tmp_path / "new" / TOKENIZER)
    assert not list((tmp_path / "new").glob(".*"))


def test_a_config_that_names_another_tokenizer(
    runs: SmallRuns, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = f"data.train=[{write_other_words(tmp_path)}]"
    assert runs.pretrain("text", tmp_path / "other", data) == 0
    words = [f"init_from={runs.exported('text')}", "train.steps=1"]
    other, same_one = (folder / TOKENIZER for folder in (tmp_path / "other", runs.run("text")))
    capsys.readouterr()
    assert runs.pretrain("text", tmp_path / "new", *words, f"input.tokenizer={other}") == 2
    assert f"input.tokenizer: {other} differs from" in capsys.readouterr().err
    assert runs.pretrain("text", tmp_path / "new", *words, f"input.tokenizer={same_one}") == 0


def test_weights_with_more_rows_than_there_are_tokens(
    runs: SmallRuns, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As tables are that were rounded up; a run that starts afresh has one as long as it needs."""
    source = Path(shutil.copytree(runs.exported("text"), tmp_path / "source"))
    fields = json.loads((source / "config.json").read_text())
    rows = fields["vocab_size"] + 3
    (source / "config.json").write_text(json.dumps({**fields, "vocab_size": rows}))
    tensors = load_file(source / "model.safetensors")
    table = tensors["embeddings.word_embeddings.weight"]
    table = torch.cat([table, torch.full((3, table.shape[1]), 0.25)])
    save_file(
        {**tensors, "embeddings.word_embeddings.weight": table},
        source / "model.safetensors",
        {"format": "pt"},
    )
    longer = f"encoder.vocab_size={rows}"
    words = [longer, f"init_from={source}", "optim.lr=1e-30", "train.steps=1"]
    assert runs.pretrain("text", tmp_path / "new", *words) == 0
    assert main(["export", str(tmp_path / "new"), "--out", str(tmp_path / "out")]) == 0
    kept = load_file(tmp_path / "out" / "model.safetensors")["embeddings.word_embeddings.weight"]
    torch.testing.assert_close(kept, table, rtol=0, atol=1e-12)
    capsys.readouterr()
    given = f"input.tokenizer={source / TOKENIZER}"
    assert runs.pretrain("text", tmp_path / "afresh", longer, given) == 2
    assert f"set it to {rows - 3}" in capsys.readouterr().err


def test_a_run_folder_with_another_tokenizer(runs: SmallRuns, tmp_path: Path) -> None:
    """Weights of one tokenizer must not meet the ids of another."""
    (tmp_path / TOKENIZER).write_text("{}")
    weights = start(runs.run("text"), runs.config("text"), tmp_path)
    with pytest.raises(UserError, match=rf"^init_from: {tmp_path}.*json differs from .*remove it"):
        weights.bring_companions()
    assert (tmp_path / TOKENIZER).read_text() == "{}"


def test_a_refused_start_leaves_no_tokenizer(
    runs: SmallRuns, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Or the run that is started after it, without init_from, would have that one."""
    words = [f"init_from={runs.run('text')}", "model.depth=3"]
    assert runs.pretrain("text", tmp_path / "new", *words) == 2
    assert "model.depth is 3 here and 2 there" in capsys.readouterr().err
    assert not (tmp_path / "new" / TOKENIZER).exists()


def test_what_was_brought_is_not_brought_again(
    moved: Callable[[str], Path], runs: SmallRuns, tmp_path: Path
) -> None:
    """As by the second process of a run, or when a run starts anew: byte by byte it is the same."""
    run, new = moved("text"), tmp_path / "new"
    content = (run / TOKENIZER).read_text(encoding="utf-8")
    (run / TOKENIZER).write_bytes(content.replace("\n", "\r\n").encode())
    for _ in range(2):
        start(run, runs.config("text"), new).bring_companions()
    assert (new / TOKENIZER).read_bytes() == (run / TOKENIZER).read_bytes()
    assert b"\r\n" in (new / TOKENIZER).read_bytes()


def test_a_run_without_its_tokenizer(
    moved: Callable[[str], Path], runs: SmallRuns, tmp_path: Path
) -> None:
    run = moved("text")
    (run / TOKENIZER).unlink()
    with pytest.raises(UserError, match=rf"cannot read .*moved/{TOKENIZER}: No such file"):
        start(run, runs.config("text"), tmp_path / "new").bring_companions()
    assert not (tmp_path / "new").exists()


# --- whole runs


@pytest.mark.parametrize("modality", EXPORTABLE)
def test_pretraining_goes_on_from_a_folder(modality: str, runs: SmallRuns, tmp_path: Path) -> None:
    source = f"init_from={runs.exported(modality)}"
    for name, rate in (("still", "1e-30"), ("new", "2e-3")):
        words = [source, f"optim.lr={rate}", "train.steps=1"]
        assert runs.pretrain(modality, tmp_path / name, *words) == 0
    given = dict(load_pretrained(str(runs.exported(modality))).backbone.named_parameters())
    still, new = (of_student(saved(tmp_path / name, 1), modality) for name in ("still", "new"))
    for name, tensor in given.items():
        torch.testing.assert_close(still[name], tensor.detach(), rtol=0, atol=1e-12)
    assert any(not torch.equal(new[name], given[name]) for name in given)


def test_a_run_that_was_moved(
    moved: Callable[[str], Path], runs: SmallRuns, tmp_path: Path
) -> None:
    words = [f"init_from={moved('text')}", "optim.lr=1e-30", "train.steps=1"]
    assert runs.pretrain("text", tmp_path / "new", *words) == 0
    first, new = saved(runs.run("text"), STEPS), saved(tmp_path / "new", 1)
    for name in below("student.", first):
        full = f"student.{name}"
        torch.testing.assert_close(new[full], first[full], rtol=0, atol=1e-12)


def test_a_run_over_several_starts_a_run(runs: SmallRuns, tmp_path: Path) -> None:
    """Another one, or one of its modalities alone; the tokenizer comes along."""
    source = runs.run(JOINT)
    words = [f"init_from={source}", "optim.lr=1e-30", "train.steps=1", "strategy=visible"]
    words += [f"decoder.{key}={value}" for key, value in DECODER.items()]
    given = saved(source, STEPS)
    for modality in (JOINT, "text"):
        new = tmp_path / modality
        assert runs.pretrain(modality, new, *words) == 0
        assert (new / TOKENIZER).read_bytes() == (source / TOKENIZER).read_bytes()
        trained = below("student.", saved(new, 1))
        for name, tensor in trained.items():
            torch.testing.assert_close(tensor, given[f"student.{name}"], rtol=0, atol=1e-12)


def test_resuming_does_not_load_again(
    moved: Callable[[str], Path],
    runs: SmallRuns,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whatever has become of the source, the run ends as if nothing had interrupted it."""
    source = moved("text")
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert runs.pretrain("text", whole, f"init_from={source}") == 0
    for harm in ("retrained", "removed"):
        shutil.copytree(whole, stopped)
        shutil.rmtree(checkpoint(stopped, STEPS))
        shutil.rmtree(source)
        if harm == "retrained":
            runs.copy("image", source)
        capsys.readouterr()
        assert runs.pretrain("text", stopped, f"init_from={source}") == 0
        assert f"resumed from {checkpoint(stopped, 2)}" in capsys.readouterr().err
        assert same(saved(stopped, STEPS), saved(whole, STEPS))
        shutil.rmtree(stopped)


def test_a_refused_start_is_one_line(
    runs: SmallRuns, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"init_from={runs.exported('image')}", "model.width=32"]
    runs.run("image")
    capsys.readouterr()
    assert runs.pretrain("image", tmp_path / "new", *words) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("selfdistill: init_from: ")
    assert "model.width is 32 here and 16 there. Set the keys to" in lines[0]
