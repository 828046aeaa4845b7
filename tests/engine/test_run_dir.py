import errno
import fcntl
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from selfdistill.durable import write_atomically
from selfdistill.engine import run_dir
from selfdistill.engine.run_dir import RunDir
from selfdistill.errors import SelfdistillError, UserError

HOLD = """
import fcntl, os, sys
lock = os.open(sys.argv[1], os.O_RDWR)
fcntl.flock(lock, fcntl.LOCK_EX)
os.ftruncate(lock, 0)
os.write(lock, f"process {os.getpid()} on host far-away".encode())
print("held", flush=True)
sys.stdin.read()
"""


def test_paths_and_creation(tmp_path: Path) -> None:
    path = tmp_path / "a b" / "l\u00e4uft"
    with RunDir(path) as run:
        assert path.is_dir()
        assert run.config_path == path / "config.yaml"
        assert run.metrics_path == path / "metrics.jsonl"
        assert run.eval_path == path / "eval.json"
        assert run.tensorboard == path / "tensorboard"
        assert run.checkpoints == path / "checkpoints"
        assert [p.name for p in path.iterdir()] == ["lock"]


def test_modes_follow_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o077)
    try:
        with RunDir(tmp_path / "run") as run:
            run.save_config("a: 1\n")
    finally:
        os.umask(old)
    assert run.path.stat().st_mode & 0o777 == 0o700
    assert {p.stat().st_mode & 0o777 for p in run.path.iterdir()} == {0o600}


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_dir, "LOCK_SECONDS", 0.2)


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the run folder ``tmp_path``."""
    (tmp_path / "lock").touch()
    command = [sys.executable, "-c", HOLD, str(tmp_path / "lock")]
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_run_is_refused_while_the_first_lives(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    with pytest.raises(UserError) as error:
        RunDir(tmp_path)
    assert str(error.value).startswith(f"run_dir: '{tmp_path}' is in use by process {holder.pid} ")
    assert "on host far-away" in str(error.value)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with RunDir(tmp_path):
        content = (tmp_path / "lock").read_text()
    assert content == f"process {os.getpid()} on host {socket.gethostname()}\n"


def test_a_lock_that_outlives_its_node_is_waited_for(
    tmp_path: Path,
    holder: subprocess.Popen[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As a server of files may keep it: the holder lives on a little while."""
    monkeypatch.setattr(run_dir, "LOCK_SECONDS", 60.0)
    end = threading.Timer(0.5, holder.kill)
    end.start()
    with RunDir(tmp_path):
        assert (tmp_path / "lock").read_text().startswith(f"process {os.getpid()} on host")
    assert end.finished.is_set()
    (line,) = [record.message for record in caplog.records]
    assert line == (
        f"'{tmp_path}' is in use by process {holder.pid} on host far-away; "
        "it is tried again for 60 s"
    )


def test_the_lock_ends_with_the_context(tmp_path: Path) -> None:
    with RunDir(tmp_path), pytest.raises(UserError, match=f"process {os.getpid()} on host"):
        RunDir(tmp_path)
    with RunDir(tmp_path):
        pass


def test_a_stale_lock_file_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("process 1 on host a-host-with-a-longer-name\n" * 9)
    with RunDir(tmp_path):
        assert (tmp_path / "lock").read_text().count("process") == 1


def test_a_forked_worker_does_not_hold_the_lock(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    worker = os.fork()
    if worker == 0:
        signal.pause()
        os._exit(0)
    try:
        lock = os.open(tmp_path / "lock", os.O_RDWR)
        with pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # what the death of the main process does
        os.close(run._lock)  # type: ignore[arg-type]
        run._lock = None
        deadline = 100
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                deadline -= 1
                assert deadline, "the worker still holds the lock"
                time.sleep(0.05)
        os.close(lock)
    finally:
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)


def test_a_file_system_without_locks_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", fail)
    with RunDir(tmp_path):
        assert "cannot be locked (Function not implemented)" in caplog.text


def test_a_folder_that_was_moved_is_not_written_to(tmp_path: Path) -> None:
    """What is at its path may be another run's by now."""
    path = tmp_path / "run"
    with RunDir(path) as run:
        run.check()
        (path / "lock").unlink()
        run.check()
        path.rename(tmp_path / "moved")
        with pytest.raises(SelfdistillError, match=r"run_dir: '.*run' was moved or removed while"):
            run.check()
        path.mkdir()
        (path / "lock").write_text("process 7 on host other\n")
        with pytest.raises(SelfdistillError, match="and is now of process 7 on host other; move"):
            run.check()


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    for path in (tmp_path / "run", tmp_path / "run" / "below"):
        with pytest.raises(UserError, match=r"run_dir: cannot write to '.*run.*choose a folder"):
            RunDir(path)


def test_a_folder_without_write_permission_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "touch", refuse)
    with pytest.raises(UserError, match=r"run_dir: cannot write to .* \(Permission denied\)"):
        RunDir(tmp_path)


def test_a_read_only_file_system_is_refused(tmp_path: Path) -> None:
    command = ["mount", "-t", "tmpfs", "-o", "size=64k,ro", "tmpfs", str(tmp_path)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if mounted.returncode:
        pytest.skip(f"mount is not permitted: {mounted.stderr.strip()}")
    try:
        for path in (tmp_path, tmp_path / "new"):
            with pytest.raises(UserError, match="Read-only file system"):
                RunDir(path)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.parametrize("name", ["fsync", "rename"])
def test_a_crash_while_writing_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    class Killed(BaseException):
        pass

    def die(*_: Any) -> None:
        raise Killed

    path = tmp_path / "eval.json"
    write_atomically(path, "old")
    with monkeypatch.context() as patched:
        patched.setattr(os, name, die)
        with pytest.raises(Killed):
            write_atomically(path, "new")
    assert path.read_text() == "old"
    write_atomically(path, "newer \u00e9")
    assert path.read_text(encoding="utf-8") == "newer \u00e9"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_cannot_be_written_leaves_nothing_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "page.html"
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        write_atomically(path, "new")
    assert caught.value.filename == str(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("code", [errno.EIO, errno.EINVAL])
def test_a_folder_that_cannot_be_synced(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error is told with its place; not every file system can do it."""
    sync = os.fsync

    def fails(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fails)
    path = tmp_path / "eval.json"
    if code == errno.EINVAL:
        write_atomically(path, "new")
    else:
        with pytest.raises(OSError, match="Input/output error") as caught:
            write_atomically(path, "new")
        assert caught.value.filename == str(tmp_path)
    assert path.read_text() == "new"


def test_environment_holds_what_repeats_a_run_and_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("API_TOKEN", "a-secret-value")
    monkeypatch.setattr(sys, "argv", ["selfdistill", "pretrain", "x.yaml"])
    monkeypatch.chdir(tmp_path)
    with RunDir(tmp_path / "run") as run:
        run.save_environment(seed=7)
    text = (run.path / "environment.json").read_text()
    assert "a-secret-value" not in text
    found = json.loads(text)
    assert found["seed"] == 7
    assert found["command"] == ["selfdistill", "pretrain", "x.yaml"]
    assert found["git_commit"] is None
    assert found["python"] == sys.version.split()[0]
    assert found["device"]
    wanted = "torch torchvision numpy accelerate webdataset einops timm pillow soundfile"
    others = "selfdistill sentencepiece tokenizers safetensors omegaconf"
    assert found["packages"].keys() == {*wanted.split(), *others.split()}
    assert all(found["packages"].values())


def test_environment_names_the_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], [*who, "commit", "-q", "--allow-empty", "-m", "x"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    monkeypatch.chdir(tmp_path)
    with RunDir(tmp_path / "run") as run:
        run.save_environment(seed=0)
    commit = json.loads((run.path / "environment.json").read_text())["git_commit"]
    head = subprocess.check_output(["git", "log", "--format=%H"], cwd=tmp_path, text=True)
    assert commit == head.strip()
