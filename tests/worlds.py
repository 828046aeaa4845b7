"""Processes that train together, several runs one after the other: starting them takes longest."""

import contextlib
import gc
import json
import os
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from launching import ENVIRONMENT, SERVER, free_port, fresh_accelerate

from selfdistill.cli import main

TIMEOUT = 300
SHARDED = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
}


@dataclass(frozen=True)
class Job:
    """``selfdistill pretrain`` with these words."""

    words: Sequence[str]
    sharded: bool = False
    setup: Callable[[], object] | None = None
    """Called before, in every process; importable, and it stays for the jobs behind."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """Other values of ``SHARDED``."""
    code: int = 0
    """The exit code of every process."""


def train(processes: int, jobs: Sequence[Job], output: Path) -> list[str]:
    """Do the jobs on so many processes; what each of them printed on the main one.

    A job that ends otherwise than it should is an AssertionError, with what all have printed.
    """
    output.mkdir(parents=True)
    ports = [free_port() for _ in jobs]
    members = [
        SERVER.Process(target=_member, args=(rank, processes, list(jobs), ports, output))
        for rank in range(processes)
    ]
    for member in members:
        member.start()
    try:
        for member in members:
            member.join(TIMEOUT)
    finally:
        for member in members:
            member.kill()
            member.join()
    printed = [(output / str(rank)).read_text(errors="replace") for rank in range(processes)]
    codes = [member.exitcode for member in members]
    assert codes == [0] * processes, f"{codes}: {printed}"
    return json.loads((output / "printed.json").read_text())


def _member(rank: int, processes: int, jobs: list[Job], ports: list[int], output: Path) -> None:
    file = os.open(output / str(rank), os.O_RDWR | os.O_CREAT | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(file, descriptor)
    torch.set_num_threads(1)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes}
    os.environ |= ENVIRONMENT | {"MASTER_ADDR": "127.0.0.1"}
    os.environ |= {key: str(value) for key, value in place.items()}
    printed = []
    for job, port in zip(jobs, ports, strict=True):
        began = os.fstat(file).st_size
        os.environ["MASTER_PORT"] = str(port)
        for key in SHARDED:
            os.environ.pop(key, None)
        os.environ |= {**(SHARDED if job.sharded else {}), **job.settings}
        if job.setup is not None:
            job.setup()
        # torch tells of a dead data worker by an error in whatever is being done: in no_grad, or in
        # this job, where the last one's loader has not been let go yet
        gc.collect()
        torch.set_grad_enabled(True)
        code = 1
        with contextlib.suppress(Exception), fresh_accelerate():
            try:
                code = main(["pretrain", *job.words])
            except Exception:
                traceback.print_exc()
        if code != job.code:
            os._exit(code or 1)
        printed.append(os.pread(file, os.fstat(file).st_size - began, began).decode())
    if rank == 0:
        (output / "printed.json").write_text(json.dumps(printed))
