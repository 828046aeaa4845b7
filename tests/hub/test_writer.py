"""A folder is there whole or not at all."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from selfdistill import tensor_files
from selfdistill.errors import SelfdistillError, UserError
from selfdistill.hub.writer import INDEX, check_free, write_folder

TENSORS = {f"w{i}": torch.full((1000,), float(i)) for i in range(5)}
TEXTS = {"config.json": "{}\n", "README.md": "# hello\n"}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_one_file(tmp_path: Path) -> None:
    write_folder(tmp_path / "a" / "out", TENSORS, TEXTS)
    out = tmp_path / "a" / "out"
    assert names(out) == ["README.md", "config.json", "model.safetensors"]
    loaded = load_file(out / "model.safetensors")
    assert loaded.keys() == TENSORS.keys()
    assert all(torch.equal(loaded[name], TENSORS[name]) for name in TENSORS)
    assert (out / "README.md").read_text() == "# hello\n"
    assert names(tmp_path / "a") == ["out"]


def test_large_models_are_split(tmp_path: Path) -> None:
    write_folder(tmp_path / "out", TENSORS, TEXTS, max_shard_size="9KB")
    index = json.loads((tmp_path / "out" / INDEX).read_text())
    files = sorted(set(index["weight_map"].values()))
    assert files == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert index["metadata"]["total_size"] == 20_000
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(tmp_path / "out" / file)[name], TENSORS[name])


def test_an_empty_folder_is_taken_a_full_one_is_not(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write_folder(tmp_path / "out", TENSORS, TEXTS)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(UserError, match=r"--out: .*out exists and is not empty; choose another"):
        write_folder(tmp_path / "out", {"w": torch.zeros(1)}, {})
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="is not empty"):
        check_free(tmp_path / "file")


def test_a_folder_that_is_there_stays_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where somebody's shell is in it, or another disk is mounted there."""
    out = tmp_path / "out"
    (out / ".writing").mkdir(parents=True)  # of one that was killed
    (out / ".writing" / "half").write_text("")
    monkeypatch.chdir(out)
    before = out.stat().st_ino
    write_folder(Path(), TENSORS, TEXTS)
    assert out.stat().st_ino == before
    assert names(Path()) == ["README.md", "config.json", "model.safetensors"]
    assert names(tmp_path) == ["out"]


def test_a_folder_that_is_there_is_empty_after_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rename(path: Path, target: Path) -> Path:
        if path.name == "model.safetensors":
            raise OSError(5, "Input/output error")
        os.rename(path, target)
        return target

    (tmp_path / "out").mkdir()
    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(SelfdistillError, match=r"--out: cannot write .*Input/output error"):
        write_folder(tmp_path / "out", TENSORS, TEXTS)
    assert names(tmp_path / "out") == []


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensor_files, "save_file", full_disk)
    with pytest.raises(SelfdistillError, match=r"--out: cannot write .*No space left on device"):
        write_folder(tmp_path / "out", TENSORS, TEXTS)
    assert names(tmp_path) == []


def test_what_a_killed_export_left_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / ".out.writing").mkdir()
    (tmp_path / ".out.writing" / "half").write_text("")
    write_folder(tmp_path / "out", TENSORS, TEXTS)
    assert "half" not in names(tmp_path / "out")
    assert names(tmp_path) == ["out"]
