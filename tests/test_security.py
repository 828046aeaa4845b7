"""Data, configs and folders of others: nothing in them is run, and they cannot fill the memory."""

import gzip
import io
import json
import os
import pickle
import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from launching import rows
from small_runs import SmallRuns
from tiny import samples, write_shard

from selfdistill.cli import main
from selfdistill.data import sources

DEEP = b"[" * 200_000


class Canary:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def object_array(canary: Canary) -> bytes:
    out = io.BytesIO()
    np.save(out, np.array([canary], dtype=object), allow_pickle=True)
    return out.getvalue()


def torch_file(canary: Canary) -> bytes:
    out = io.BytesIO()
    torch.save(canary, out)
    return out.getvalue()


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """A file that must not come to be; what is run makes it, which is tried before."""
    path = tmp_path / "CANARY"
    pickle.loads(pickle.dumps(Canary(path)))
    assert path.exists()
    path.unlink()
    return path


def test_pickles_in_a_shard_are_left_alone(runs: SmallRuns, canary: Path, tmp_path: Path) -> None:
    """Beside a picture, and in place of one."""
    evil = Canary(canary)
    members = {
        "pkl": pickle.dumps(evil),
        "pyd": pickle.dumps(evil),
        "pth": torch_file(evil),
        "pt": torch_file(evil),
        "npy": object_array(evil),
        "npz": object_array(evil),
    }
    made = [sample | members for sample in samples("image", 16)]
    made += [{extension: data} for extension, data in members.items()]
    made += [{"png": data} for data in members.values()]
    shard = write_shard(tmp_path / "evil.tar", made)
    words = [f"data.train=[{shard}]", "data.max_bad_share=0.5"]
    assert runs.pretrain("image", tmp_path / "run", *words) == 0
    assert rows(tmp_path / "run")[-1]["step"] == 3
    assert main(["inspect", str(shard)]) == 0
    assert not canary.exists()


@pytest.mark.parametrize("command", ["pretrain", "eval", "inspect", "embed"])
@pytest.mark.parametrize(
    "name", ["pipe:touch CANARY", "file:///etc/passwd", "https://localhost/a.tar;touch CANARY"]
)
def test_names_that_are_commands(
    command: str,
    name: str,
    runs: SmallRuns,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = runs.run("image")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GOPEN_REWRITE", "sample:=pipe:touch CANARY;https:=pipe:touch CANARY")
    given = json.dumps([name])
    if command == "pretrain":
        code = runs.pretrain("image", tmp_path / "run", f"data.train={given}")
    elif command == "eval":
        task = json.dumps({"train": [name], "test": [name]})
        code = runs.pretrain("image", tmp_path / "run", f"eval.tasks.x={task}")
    elif command == "inspect":
        code = main(["inspect", name])
    else:
        code = main(["embed", str(run), name, "--out", "x.safetensors"])
    assert code == 2
    assert "Traceback" not in capsys.readouterr().err
    assert not (tmp_path / "CANARY").exists()
    assert not (tmp_path / "x.safetensors").exists()


def gzip_bomb(path: Path) -> None:
    """100 MB of zeros behind two pictures, in 100 kB."""
    inside = io.BytesIO()
    with tarfile.open(fileobj=inside, mode="w") as tar:
        for number, sample in enumerate(samples("image", 16)):
            info = tarfile.TarInfo(f"{number}.png")
            info.size = len(sample["png"])
            tar.addfile(info, io.BytesIO(sample["png"]))
        info = tarfile.TarInfo("bomb.png")
        info.size = 100_000_000
        tar.addfile(info, io.BytesIO(bytes(info.size)))
    path.write_bytes(gzip.compress(inside.getvalue()))


def test_a_gzip_bomb_is_cut_off(
    runs: SmallRuns,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(sources, "SHARD_BYTES", 1_000_000)
    gzip_bomb(tmp_path / "bomb.tar.gz")
    words = [f"data.train=[{tmp_path / 'bomb.tar.gz'}]"]
    assert runs.pretrain("image", tmp_path / "run", *words) == 0
    said = capsys.readouterr().err + caplog.text
    assert "bomb.tar.gz: holds more than 1,000,000 bytes; the rest is not read" in said
    assert "on 16 samples" in said


def test_zstd_is_not_unpacked(
    runs: SmallRuns, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bomb or not, it is no tar."""
    path = tmp_path / "bomb.tar.zst"
    path.write_bytes(b"\x28\xb5\x2f\xfd" + bytes(2000))
    assert runs.pretrain("image", tmp_path / "run", f"data.train=[{path}]") == 2
    assert f"'{path}' is not a tar file" in capsys.readouterr().err


def test_json_without_an_end_in_a_shard(
    runs: SmallRuns, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    deep = [b'{"text": ' + DEEP, b'{"a":' * 100_000, DEEP]
    shard = write_shard(
        tmp_path / "deep.tar", [*samples("text", 40), *({"json": text} for text in deep)]
    )
    words = [f"data.train=[{shard}]", "encoder.vocab_size=28", "data.max_bad_share=0.5"]
    assert runs.pretrain("text", tmp_path / "run", *words, "train.steps=8") == 0
    assert rows(tmp_path / "run")[-1]["bad_samples"] >= 1
    assert "undecodable json" in capsys.readouterr().err


def code_of_its_own(folder: Path, canary: Path) -> None:
    content = json.loads((folder / "config.json").read_text())
    content["auto_map"] = {"AutoModel": "evil.Evil", "AutoConfig": "evil.Config"}
    (folder / "config.json").write_text(json.dumps(content))
    (folder / "evil.py").write_text(f"import pathlib\npathlib.Path({str(canary)!r}).touch()\n")


@pytest.fixture
def folder(runs: SmallRuns, tmp_path: Path) -> Path:
    """A folder of transformers with a tokenizer, which a test may change."""
    return Path(shutil.copytree(runs.exported("text"), tmp_path / "folder"))


def starts(runs: SmallRuns, folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """A run from the weights and the tokenizer of a folder: its code, and what is said."""
    capsys.readouterr()
    code = runs.pretrain("text", folder.parent / "run", f"init_from={folder}")
    return code, capsys.readouterr().err


def test_the_folder_itself_is_fine(
    runs: SmallRuns, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert starts(runs, folder, capsys)[0] == 0


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_json_without_an_end_in_a_folder(
    name: str, runs: SmallRuns, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / name).write_bytes(DEEP)
    code, said = starts(runs, folder, capsys)
    assert code == 2
    assert name in said
    assert "Traceback" not in said


def test_a_folder_that_asks_for_its_own_code(
    runs: SmallRuns, folder: Path, canary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code_of_its_own(folder, canary)
    code, said = starts(runs, folder, capsys)
    assert code == 2
    assert "asks to run code that comes with it (auto_map), which is never done here" in said
    assert main(["embed", str(folder), "x.txt", "--out", str(folder.parent / "x")]) == 2
    assert not canary.exists()


@pytest.mark.parametrize("where", ["../secret.json", "/etc/passwd"])
def test_a_tokenizer_outside_the_folder_is_not_read(
    where: str, runs: SmallRuns, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Files have fixed names; what the config beside them says of others counts nothing."""
    (folder / "tokenizer.json").rename(folder.parent / "secret.json")
    names = dict.fromkeys(("tokenizer_file", "vocab_file", "merges_file", "auto_map"), where)
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    code, said = starts(runs, folder, capsys)
    assert code == 2
    assert "tokenizer.json" in said
    assert "Traceback" not in said
    assert not list((folder.parent / "run").glob("tokenizer*"))


CYCLES = {
    "a section in itself": "data: &data {train: [x], more: *data}\n",
    "a list in itself": "data: {train: &train [x, *train]}\n",
    "everything in everything": "eval: {tasks: &t {a: {train: [x], test: [y]}, b: *t}}\n",
    "many levels": f"data: {{train: {'[' * 500}{']' * 500}}}\n",
    "too many levels to parse": f"data: {{train: {'[' * 5000}{']' * 5000}}}\n",
}
LAUGHS = "".join(
    f"x{n}: &x{n} [{', '.join([f'*x{n - 1}' if n else 'ha'] * 10)}]\n" for n in range(9)
)


@pytest.mark.parametrize("text", CYCLES.values(), ids=CYCLES)
def test_configs_in_themselves(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(f"modality: image\nrun_dir: {tmp_path / 'run'}\n{text}")
    assert main(["pretrain", str(path)]) == 2
    said = capsys.readouterr().err
    assert f"config: {path} has sections in sections of more than 20 levels" in said
    assert not (tmp_path / "run").exists()


def test_a_config_of_a_billion_values(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(f"modality: image\nrun_dir: {tmp_path / 'run'}\n{LAUGHS}")
    assert main(["pretrain", str(path)]) == 2
    assert "stands for more than 100,000 values" in capsys.readouterr().err


def test_aliases_are_no_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(
        f"modality: image\nrun_dir: {tmp_path / 'run'}\ndata: {{train: &t ['{tmp_path}/no.tar']}}\n"
        "eval: {tasks: {a: {train: *t, test: *t}}}\n"
    )
    assert main(["pretrain", str(path)]) == 2
    assert "no file matches" in capsys.readouterr().err


def test_a_config_that_includes_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "c.yaml"
    for text in ("include: c.yaml\n", "<<: !include c.yaml\n", "defaults: [c]\n"):
        path.write_text(f"modality: image\nrun_dir: {tmp_path / 'run'}\n{text}")
        assert main(["pretrain", str(path)]) == 2
        assert "Traceback" not in capsys.readouterr().err


def test_temporary_files_are_their_user_s(
    runs: SmallRuns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that makes a tokenizer, a copy of its data's index, checkpoints and logs."""
    shared, run = tmp_path / "shared", tmp_path / "run"
    shared.mkdir()
    made: list[tuple[Path, int]] = []
    make = tempfile.mkdtemp

    def recorded(*parts: Any, **named: Any) -> str:
        path = make(*parts, **named)
        made.append((Path(path), Path(path).stat().st_mode & 0o777))
        return path

    monkeypatch.setattr(tempfile, "tempdir", str(shared))
    monkeypatch.setattr(tempfile, "mkdtemp", recorded)
    mask = os.umask(0o077)
    try:
        assert runs.pretrain("text", run, "log.tensorboard=true") == 0
        assert main(["inspect", *runs.shards("image"), "--out", str(tmp_path / "page.html")]) == 0
    finally:
        os.umask(mask)
    modes = {path: path.stat().st_mode & 0o777 for path in (run, *run.rglob("*"))}
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o700}
    assert {mode for path, mode in modes.items() if path.is_file()} == {0o600}
    assert all(mode == 0o700 for _, mode in made)
    assert len({path.name for path, _ in made}) == len(made)
    assert list(shared.iterdir()) == []
