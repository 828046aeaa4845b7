"""The exit codes of launch/torchrun.py."""

import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from held import HERE, LAUNCH, status, until
from launching import Running, python

Start = Callable[..., Running]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the processes leave a file of each start."""
    (tmp_path / "starts").mkdir()
    return tmp_path / "starts"


@pytest.fixture
def start(tmp_path: Path, folder: Path) -> Iterator[Start]:
    """Start the launcher with two processes of exits.py."""
    started: list[Running] = []

    def run(how: str, *words: str) -> Running:
        options = ["--standalone", "--nproc-per-node=2", *words]
        argv = [LAUNCH / "torchrun.py", *options, HERE / "exits.py", how, folder]
        started.append(Running([*map(str, argv)], tmp_path / "output", program=python))
        return started[-1]

    yield run
    for running in started:
        running.clear()


@pytest.mark.parametrize(("how", "code"), [("4", 4), ("killed", 128 + signal.SIGKILL)])
def test_first_failure(how: str, code: int, start: Start) -> None:
    ended = start(how).wait(60)
    assert ended.code == code
    assert ended.stderr.count(f"process 1 failed first, with exit code {code}") == 1
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(("how", "starts"), [("killed", 2), ("1", 2), ("3", 1), ("75", 1)])
def test_only_crashes_are_started_again(how: str, starts: int, start: Start, folder: Path) -> None:
    ended = start(how, "--max-restarts=1").wait(60)
    assert ended.code == (128 + signal.SIGKILL if how == "killed" else int(how)), ended.stderr
    assert len(list(folder.glob("1-*"))) == starts


@pytest.mark.parametrize("words", [(), ("--max-restarts=2",)])
@pytest.mark.parametrize("how", ["saves", "sleeps"])
def test_asked_to_stop(how: str, words: tuple[str, ...], start: Start, folder: Path) -> None:
    """Both what has something to save and what does not is to be run again, but not by the
    launcher, which was asked to end, too."""
    launcher = start(how, *words)
    until(lambda: len(list(folder.iterdir())) == 2, "both processes have started")
    launcher.send(signal.SIGTERM)
    ended = launcher.wait(60)
    assert ended.code == 75, ended.stderr
    assert len(list(folder.iterdir())) == 2


def test_before_there_are_processes(at_python: dict[str, str], tmp_path: Path) -> None:
    command = ["python", LAUNCH / "torchrun.py", "--nnodes=2", "--master-addr=127.0.0.1", "x.py"]
    launcher = subprocess.Popen(command, env=at_python, stderr=subprocess.PIPE, text=True)
    until(lambda: listens(launcher.pid, signal.SIGTERM), "it listens", every=0.01)
    launcher.send_signal(signal.SIGTERM)
    launcher.communicate(timeout=60)
    assert launcher.returncode == 75


def listens(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal."""
    return bool(int(status(str(pid), "SigCgt")[0], 16) >> number - 1 & 1)
