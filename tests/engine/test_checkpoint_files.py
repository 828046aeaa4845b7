import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_cases import FILES, assert_equal, example

from selfdistill.engine import checkpoint_files
from selfdistill.engine.checkpoint import Checkpointer
from selfdistill.engine.checkpoint_files import Checkpoint, read_checkpoint
from selfdistill.errors import UserError


@pytest.fixture
def saver(tmp_path: Path) -> Checkpointer:
    return Checkpointer(tmp_path / "checkpoints", keep=2)


def test_round_trip_and_layout(saver: Checkpointer) -> None:
    path = saver.save(example(5))
    assert path == saver.folder / "step-00000005"
    assert sorted(p.name for p in path.iterdir()) == sorted(FILES)
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["step"] == 5
    assert set(manifest["files"]) == set(FILES[:-1])
    assert manifest["files"]["state.json"]["bytes"] == (path / "state.json").stat().st_size
    assert_equal(read_checkpoint(path), example(5))


def test_files_have_the_mode_of_the_umask(saver: Checkpointer) -> None:
    old = os.umask(0o027)
    try:
        path = saver.save(example(1))
    finally:
        os.umask(old)
    assert {p.stat().st_mode & 0o777 for p in path.iterdir()} == {0o640}
    assert path.stat().st_mode & 0o777 == 0o750


def test_shared_and_strided_tensors_are_saved(saver: Checkpointer) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    model = {"a": base, "tied": base, "part": base[1], "turned": base.T, "empty": base[:0]}
    loaded = read_checkpoint(saver.save(Checkpoint(1, model, {}, {})))
    for name, tensor in model.items():
        assert torch.equal(loaded.model[name], tensor)


def test_no_flipped_bit_goes_unnoticed(saver: Checkpointer) -> None:
    path = saver.save(example(1))
    for name in FILES:
        whole = (path / name).read_bytes()
        for place in range(len(whole)):
            flipped = bytearray(whole)
            flipped[place] ^= 1 << place % 8
            (path / name).write_bytes(flipped)
            with pytest.raises(UserError):
                read_checkpoint(path)
        (path / name).write_bytes(whole)
    assert_equal(read_checkpoint(path), example(1))


def test_what_is_no_checkpoint_is_refused(saver: Checkpointer, tmp_path: Path) -> None:
    file = tmp_path / "model.pt"
    file.write_bytes(b"x")
    for path in (tmp_path / "missing", tmp_path, file):
        with pytest.raises(UserError, match=r"no checkpoint; expected .*manifest\.json") as error:
            read_checkpoint(path)
        assert str(path) in str(error.value)


@pytest.mark.parametrize("content", [b"[]", b"3", b"null", b"{}", b'{"format": 9}', b"[" * 200_000])
def test_strange_manifests_are_refused(saver: Checkpointer, content: bytes) -> None:
    path = saver.save(example(1))
    (path / "manifest.json").write_bytes(content)
    with pytest.raises(UserError, match=r"manifest\.json"):
        read_checkpoint(path)


def test_a_manifest_cannot_name_other_files_or_formats(saver: Checkpointer) -> None:
    path = saver.save(example(1))
    good = json.loads((path / "manifest.json").read_text())
    outside = good["files"] | {"../../secret": good["files"]["state.json"]}
    for change in ({"files": outside}, {"step": 2}, {"format": 1}):
        (path / "manifest.json").write_text(json.dumps(good | change))
        with pytest.raises(UserError, match=r"manifest\.json (is damaged|has format 1)"):
            read_checkpoint(path)


class Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("manifest_agrees", [False, True])
def test_a_pickle_is_never_executed(
    saver: Checkpointer, tmp_path: Path, manifest_agrees: bool
) -> None:
    canary = tmp_path / "canary"
    pickle.loads(pickle.dumps(Canary(canary)))
    assert canary.exists()  # the pickle does what it should, so its absence below means something
    canary.unlink()
    path = saver.save(example(1))
    torch.save(Canary(canary), path / "model.safetensors")
    if manifest_agrees:
        manifest = json.loads((path / "manifest.json").read_text())
        manifest["files"]["model.safetensors"] = checkpoint_files._digest(
            path / "model.safetensors"
        )
        (path / "manifest.json").write_text(json.dumps(manifest))
    expected = "is no safetensors file" if manifest_agrees else "is damaged"
    with pytest.raises(UserError, match=expected):
        read_checkpoint(path)
    assert not canary.exists()
