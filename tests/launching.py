"""Starts the program: forked from a server that has imported it, as a command, or in here."""

import contextlib
import json
import multiprocessing
import os
import random
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState

from selfdistill.cli import main

Program = Callable[[list[str]], int]
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["selfdistill.pretrain", "selfdistill.cli", "sklearn.linear_model"])
TIMEOUT = 120
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
Setup = Callable[[], object]
# below those that the system gives to connections, and others for each worker of pytest: one that
# is free now is still free when processes come to meet there
_FIRST_PORT = 10_000 + 1_000 * (int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % 10)
_PORTS = iter(random.sample(range(_FIRST_PORT, _FIRST_PORT + 1_000), 1_000))


@dataclass(frozen=True)
class Ended:
    """How a run ended; ``code`` is negative after a signal."""

    code: int
    stdout: str
    stderr: str


def _child(program: Program, argv: list[str], output: Path, setup: Setup | None) -> None:
    os.setsid()  # what it starts can be found by its group
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(output / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, descriptor)
        os.close(file)
    os.environ |= ENVIRONMENT
    torch.set_num_threads(1)  # the server has imported torch before it could read the variable
    if setup is not None:
        setup()
    sys.exit(program(argv))


class Running:
    """A run in a process of its own, without the seconds that imports take.

    Args:
        argv: of the command line.
        output: a folder for what it prints.
        setup: called in that process before; importable.
        program: what takes the words and returns the exit code; importable.
    """

    def __init__(
        self, argv: list[str], output: Path, setup: Setup | None = None, program: Program = main
    ) -> None:
        output.mkdir(parents=True, exist_ok=True)
        self.output = output
        self.process = SERVER.Process(target=_child, args=(program, argv, output, setup))
        self.process.start()

    def send(self, number: int) -> None:
        assert self.process.pid is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, number)

    def wait(self, timeout: float = TIMEOUT) -> Ended:
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
            raise AssertionError(f"still running after {timeout} s: {self.printed('stderr')}")
        return Ended(self.process.exitcode, self.printed("stdout"), self.printed("stderr"))

    def printed(self, name: str) -> str:
        path = self.output / name
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def clear(self) -> None:
        """End it and all that it started."""
        assert self.process.pid is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()  # before it leads a group
        self.process.join()

    def left_behind(self, patience: float = 20) -> list[int]:
        """Processes that it started and that still run some seconds after its end."""
        assert self.process.pid is not None
        end = time.monotonic() + patience
        while (found := group(self.process.pid)) and time.monotonic() < end:
            time.sleep(0.2)
        return found


def group(number: int) -> list[int]:
    """The processes of a group that still run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            pid, _, rest = path.read_text().partition(" ")
            state, _, group = rest.rpartition(")")[2].split()[:3]
            if int(group) == number and state != "Z":
                found.append(int(pid))
    return found


def command(
    *words: str,
    timeout: float = TIMEOUT,
    meanwhile: Callable[[subprocess.Popen[bytes]], object] = lambda process: None,
    **environment: str,
) -> Ended:
    """Run a program with the package's interpreter.

    Args:
        words: what follows ``python``.
        timeout: in seconds.
        meanwhile: called once it has started; it leads a process group.
        environment: variables to set.
    """
    environment = {**os.environ, **ENVIRONMENT, **environment}
    with subprocess.Popen(
        [sys.executable, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        start_new_session=True,
    ) as process:
        try:
            meanwhile(process)
            out, err = process.communicate(timeout=timeout)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return Ended(process.returncode, out.decode(errors="replace"), err.decode(errors="replace"))


def free_port() -> int:
    """One that nobody listens at, and that was not given out before."""
    for port in _PORTS:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            return port
    raise AssertionError("every port of this worker was given out or is taken")


def python(argv: list[str]) -> int:
    """What ``python`` does with a file, or with ``-m`` and a module: a program for ``Running``."""
    is_module = argv[0] == "-m"
    sys.argv[:] = argv[is_module:]
    if is_module:
        runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(argv[0], run_name="__main__")
    return 0


def torchrun(output: Path, *words: str) -> Running:
    """Two processes of ``selfdistill pretrain``."""
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node=2"]
    launcher += [f"--master-port={free_port()}", "--master-addr=127.0.0.1"]
    words = ("-m", "selfdistill", "pretrain", *words)
    return Running([*launcher, *words], output, program=python)


@contextlib.contextmanager
def fresh_accelerate() -> Iterator[None]:
    """Accelerate keeps its state in the class: let no test see another's."""
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        yield
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def rows(run: Path) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl."""
    path = run / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def checkpoint(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:08d}"


def weights(run: Path, step: int) -> tuple[bytes, bytes]:
    """Model and optimizer of a checkpoint."""
    folder = checkpoint(run, step)
    model, optimizer = folder / "model.safetensors", folder / "optimizer.safetensors"
    return model.read_bytes(), optimizer.read_bytes()
