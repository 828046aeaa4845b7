"""Things that end with the test: scripts that serve it, and runs that it holds still."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from launching import rows

HERE = Path(__file__).parent
LAUNCH = HERE.parents[1] / "launch"


@contextmanager
def serving(script: str, *words: str, log: Path) -> Iterator[None]:
    """A script of this folder from its "ready" on; it ends when its input does."""
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [HERE / script, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
        )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        ready = process.stdout.readline()
        assert ready == b"ready\n", f"{script} failed: {log.read_text()}"
        yield
    finally:
        process.stdin.close()
        process.wait(60)


def until(done: Callable[[], object], what: str, patience: float = 180, every: float = 0.1) -> None:
    end = time.monotonic() + patience
    while not done():
        assert time.monotonic() < end, f"not within {patience} s: {what}"
        time.sleep(every)


class Held:
    """The main process of a run, stopped in the middle of it."""

    def __init__(self, run: Path, from_step: int) -> None:
        until(lambda: len(rows(run)) >= from_step, f"step {from_step} of {run}", every=0.002)
        self.pid = pid_here((run / "lock").read_text().split()[1], run)
        os.kill(self.pid, signal.SIGSTOP)

    def waits_for(self, number: int) -> bool:
        """Whether the signal has come."""
        pending = status(str(self.pid), "ShdPnd")[0]
        return bool(int(pending, 16) >> number - 1 & 1)

    def go_on(self) -> None:
        os.kill(self.pid, signal.SIGCONT)


def status(pid: str, key: str) -> list[str]:
    """A line of /proc/PID/status."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return line.split()[1:]
    raise KeyError(key)


def pid_here(number: str, run: Path) -> int:
    """The number of a run's process, which knows itself by another in a PID namespace."""
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (path / "cmdline").read_text()
            if f"run_dir={run}" in words and status(path.name, "NSpid")[-1] == number:
                return int(path.name)
    raise AssertionError(f"no process of {run} has the number {number}")
