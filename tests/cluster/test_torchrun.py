"""The exit codes of launch/torchrun.py."""

import signal
import subprocess
from pathlib import Path

import pytest
from held import HERE, LAUNCH, status, until

Popen = subprocess.Popen


def start(how: str, folder: Path, environment: dict[str, str], *words: str) -> "Popen[str]":
    options = ["--standalone", "--nproc-per-node=2", *words, HERE / "exits.py", how, folder]
    command = ["python", LAUNCH / "torchrun.py", *options]
    return Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(("how", "code"), [("4", 4), ("killed", 128 + signal.SIGKILL)])
def test_first_failure(how: str, code: int, at_python: dict[str, str], tmp_path: Path) -> None:
    launcher = start(how, tmp_path, at_python)
    _, said = launcher.communicate(timeout=60)
    assert launcher.returncode == code
    assert said.count(f"process 1 failed first, with exit code {code}") == 1
    assert "Traceback" not in said


@pytest.mark.parametrize(("how", "starts"), [("killed", 2), ("1", 2), ("3", 1), ("75", 1)])
def test_only_crashes_are_started_again(
    how: str, starts: int, at_python: dict[str, str], tmp_path: Path
) -> None:
    launcher = start(how, tmp_path, at_python, "--max-restarts=1")
    _, said = launcher.communicate(timeout=60)
    assert launcher.returncode == (128 + signal.SIGKILL if how == "killed" else int(how)), said
    assert len(list(tmp_path.glob("1-*"))) == starts


@pytest.mark.parametrize("words", [(), ("--max-restarts=2",)])
@pytest.mark.parametrize("how", ["saves", "sleeps"])
def test_asked_to_stop(
    how: str, words: tuple[str, ...], at_python: dict[str, str], tmp_path: Path
) -> None:
    """Both what has something to save and what does not is to be run again, but not by the
    launcher, which was asked to end, too."""
    launcher = start(how, tmp_path, at_python, *words)
    until(lambda: len(list(tmp_path.iterdir())) == 2, "both processes have started")
    launcher.send_signal(signal.SIGTERM)
    _, said = launcher.communicate(timeout=60)
    assert launcher.returncode == 75, said
    assert len(list(tmp_path.iterdir())) == 2


def test_before_there_are_processes(at_python: dict[str, str], tmp_path: Path) -> None:
    command = ["python", LAUNCH / "torchrun.py", "--nnodes=2", "--master-addr=127.0.0.1", "x.py"]
    launcher = Popen(command, env=at_python, stderr=subprocess.PIPE, text=True)
    until(lambda: listens(launcher.pid, signal.SIGTERM), "it listens", every=0.01)
    launcher.send_signal(signal.SIGTERM)
    launcher.communicate(timeout=60)
    assert launcher.returncode == 75


def listens(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal."""
    return bool(int(status(str(pid), "SigCgt")[0], 16) >> number - 1 & 1)
