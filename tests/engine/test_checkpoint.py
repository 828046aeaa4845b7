import builtins
import errno
import logging
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from checkpoint_cases import FILES, assert_equal, example

from selfdistill import tensor_files
from selfdistill.engine import checkpoint as checkpoint_module
from selfdistill.engine import checkpoint_files
from selfdistill.engine.checkpoint import Checkpointer
from selfdistill.engine.checkpoint_files import (
    complete_checkpoints,
    find_checkpoint,
    newest_checkpoint,
    read_checkpoint,
)
from selfdistill.errors import SelfdistillError, UserError


class Killed(BaseException):
    """Stands in for the end of the process: nothing may catch it."""


@pytest.fixture
def saver(tmp_path: Path) -> Checkpointer:
    return Checkpointer(tmp_path / "checkpoints", keep=2)


def test_saving_a_step_twice_changes_nothing(saver: Checkpointer) -> None:
    path = saver.save(example(1))
    before = {p.name: p.stat().st_ino for p in path.iterdir()}
    assert saver.save(example(1)) == path
    assert {p.name: p.stat().st_ino for p in path.iterdir()} == before


def test_saving_over_a_damaged_step_replaces_it(saver: Checkpointer) -> None:
    path = saver.save(example(1))
    (path / "state.json").write_text("{}")
    assert_equal(read_checkpoint(saver.save(example(1))), example(1))


def test_old_ones_are_removed(saver: Checkpointer) -> None:
    for step in (1, 2, 99_999_999, 100_000_000):
        saver.save(example(step))
    kept = [path.name for path in complete_checkpoints(saver.folder)]
    assert kept == ["step-99999999", "step-100000000"]
    assert len(list(saver.folder.iterdir())) == 2


def test_what_was_just_saved_is_never_the_one_removed(saver: Checkpointer) -> None:
    for step in (6, 8):
        saver.save(example(step))
    for step in (1, 2, 3):
        saver.save(example(step))
    assert [int(p.name[5:]) for p in complete_checkpoints(saver.folder)] == [2, 3, 6, 8]


def test_one_that_is_read_by_others_is_removed_again_and_again(
    saver: Checkpointer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that somebody has open stays in its folder on NFS, under another name."""

    def remove(path: Path, ignore_errors: bool = False) -> None:
        if (path / "state.json").exists():
            (path / "state.json").rename(path / ".nfs0001")

    monkeypatch.setattr(shutil, "rmtree", remove)
    kept = saver.save(example(1))
    for _ in range(3):
        saver.save(example(2))
        saver.remove_after(1)
        assert complete_checkpoints(saver.folder) == [kept]
    monkeypatch.undo()
    saver.clear()
    assert [*saver.folder.iterdir()] == [kept]


def test_all_is_on_the_disk_before_it_gets_its_name(
    saver: Checkpointer, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver.save(example(1))
    synced: list[str] = []
    at_rename: list[set[str]] = []
    rename = os.rename

    def recorded(source: Path, target: Path) -> None:
        at_rename.append(set(synced))
        rename(source, target)

    def named(descriptor: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)

    monkeypatch.setattr(os, "fsync", named)
    monkeypatch.setattr(os, "rename", recorded)
    saver.save(example(2))
    assert at_rename == [{*FILES, ".writing-step-00000002"}]
    assert synced[-3:] == ["manifest.json", ".writing-step-00000002", "checkpoints"]


def boundaries(monkeypatch: pytest.MonkeyPatch, kill_at: int) -> list[int]:
    """Raise before the n-th operation on files, or half-way through it where it writes."""
    count = [0]

    def patch(owner: Any, name: str, half: Callable[..., Any] | None = None) -> None:
        real = getattr(owner, name)

        def patched(*args: Any, **kwargs: Any) -> Any:
            count[0] += 1
            if count[0] == kill_at:
                raise Killed
            if half is not None:
                count[0] += 1
                if count[0] == kill_at:
                    half(*args)
                    raise Killed
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, patched)

    patch(tensor_files, "save_file", lambda _, path: Path(path).write_bytes(b"\x10\0\0"))
    patch(checkpoint_files, "write_synced", lambda path, text: path.write_text(text[:5]))
    patch(shutil, "rmtree", lambda path, **_: next(iter(sorted(Path(path).iterdir()))).unlink())
    patch(os, "fsync")
    patch(os, "rename")
    patch(os, "mkdir")
    patch(builtins, "open")
    return count


def kills(monkeypatch: pytest.MonkeyPatch, action: Callable[[], Any]) -> Iterator[int]:
    """Kill ``action`` at its first boundary, its second, and so on until it gets through."""
    for n in range(1, 200):
        with monkeypatch.context() as patched:
            boundaries(patched, n)
            try:
                action()
            except Killed:
                pass
            else:
                return
        yield n
    raise AssertionError("the save never finished")


def test_killed_at_every_boundary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    home = tmp_path / "checkpoints"

    def prepared() -> Checkpointer:
        shutil.rmtree(home, ignore_errors=True)
        saver = Checkpointer(home, keep=2)
        for step in (1, 2):
            saver.save(example(step))
        return saver

    current = [prepared()]
    seen = set()
    killed = 0
    for _ in kills(monkeypatch, lambda: current[0].save(example(3))):
        killed += 1
        caplog.clear()
        saver = current[0]
        newest = newest_checkpoint(saver.folder)
        assert newest is not None
        step = int(newest.name[5:])
        seen.add(step)
        assert_equal(read_checkpoint(newest), example(step))
        for partial in saver.folder.glob(".writing-*"):
            assert f"{partial} is an unfinished checkpoint" in caplog.text
        saver.save(example(4))
        assert newest_checkpoint(saver.folder) == home / "step-00000004"
        assert len(list(home.iterdir())) == 2
        current[0] = prepared()
    assert seen == {2, 3}
    assert killed >= 20


def test_killed_during_the_first_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saver = Checkpointer(tmp_path / "checkpoints", keep=1)
    found = []
    for _ in kills(monkeypatch, lambda: saver.save(example(1))):
        found.append(newest_checkpoint(saver.folder))
        shutil.rmtree(saver.folder, ignore_errors=True)
    assert found[0] is None
    assert set(found) == {None, saver.folder / "step-00000001"}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_damage_is_named_and_the_previous_one_taken(
    saver: Checkpointer, caplog: pytest.LogCaptureFixture, name: str, damage: str
) -> None:
    saver.save(example(1))
    path = saver.save(example(2)) / name
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 3] ^= 1
        path.write_bytes(content)
    elif damage == "truncate":
        path.write_bytes(content[:-2])
    else:
        path.unlink()
    assert newest_checkpoint(saver.folder) == saver.folder / "step-00000001"
    if (name, damage) == ("manifest.json", "remove"):
        assert f"{path.parent} is an unfinished checkpoint" in caplog.text
    elif name == "manifest.json":
        assert str(path.parent) in caplog.text
    else:
        assert str(path) in caplog.text
    assert caplog.records[0].levelno == logging.WARNING
    with pytest.raises(UserError, match="step-00000002"):
        read_checkpoint(path.parent)


def test_all_damaged_is_an_error_and_none_is_not(saver: Checkpointer) -> None:
    assert newest_checkpoint(saver.folder) is None
    for step in (1, 2):
        (saver.save(example(step)) / "state.json").unlink()
    with pytest.raises(UserError, match="all 2 checkpoints are damaged"):
        newest_checkpoint(saver.folder)


@pytest.mark.parametrize("name", ["listdir", "stat"])
def test_what_cannot_be_read_is_not_taken_for_nothing(
    saver: Checkpointer, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    saver.save(example(1))
    whole = getattr(os, name)

    def fail(path: Any, *args: Any, **kwargs: Any) -> Any:
        if str(path).startswith(str(saver.folder)):
            raise OSError(errno.EIO, "Input/output error")
        return whole(path, *args, **kwargs)

    monkeypatch.setattr(os, name, fail)
    with pytest.raises(SelfdistillError, match=r"cannot read the checkpoints in .*output error"):
        newest_checkpoint(saver.folder)


def test_the_path_of_a_run_or_a_checkpoint_is_understood(
    saver: Checkpointer, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="resume: no checkpoint in"):
        find_checkpoint(tmp_path)
    with pytest.raises(UserError, match="resume: no checkpoint in"):
        find_checkpoint(tmp_path / "missing")
    first, second = saver.save(example(1)), saver.save(example(2))
    assert find_checkpoint(first) == first
    assert find_checkpoint(tmp_path) == second
    assert find_checkpoint(saver.folder) == second


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
@pytest.mark.parametrize("where", ["model", "state", "rename"])
def test_a_write_that_fails_leaves_the_previous_one(
    saver: Checkpointer, monkeypatch: pytest.MonkeyPatch, code: int, where: str
) -> None:
    previous = saver.save(example(1))

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    target = {
        "model": (tensor_files, "save_file"),
        "state": (checkpoint_files, "write_synced"),
        "rename": (checkpoint_module.os, "rename"),
    }[where]
    with monkeypatch.context() as patched:
        patched.setattr(*target, fail)
        with pytest.raises(SelfdistillError) as error:
            saver.save(example(2, size=1000))
    message = str(error.value)
    assert error.value.exit_code == 1
    for words in (os.strerror(code), "step 2", " bytes", "are free in", str(previous)):
        assert words in message
    needed = int(message.split("it needs ")[1].split()[0])
    assert 4000 < needed < 5000
    assert list(saver.folder.iterdir()) == [previous]
    assert_equal(read_checkpoint(previous), example(1))
    assert saver.save(example(2)).name == "step-00000002"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if mounted.returncode:
        pytest.skip(f"mount is not permitted: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(small_disk: Path) -> None:
    saver = Checkpointer(small_disk / "checkpoints", keep=3)
    previous = saver.save(example(1))
    with pytest.raises(SelfdistillError, match="No space left on device") as error:
        saver.save(example(2, size=50_000))
    assert "it needs 2000" in str(error.value)
    assert list(saver.folder.iterdir()) == [previous]
    assert_equal(read_checkpoint(previous), example(1))


def test_an_old_one_that_cannot_go_is_only_a_warning(
    saver: Checkpointer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(checkpoint_module, "_remove", fail)
    for step in (1, 2, 3):
        saver.save(example(step))
    assert len(complete_checkpoints(saver.folder)) == 3
    assert "cannot remove the old checkpoint" in caplog.text
