"""The folder that shards are written to: whose it is, and what is finished in it."""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from selfdistill.durable import write_atomically
from selfdistill.errors import UserError
from selfdistill.packing.declaration import Job
from selfdistill.packing.inputs import Inputs

PLAN = "pack.json"
_INPUTS, _LOCK = "inputs.npz", "lock"
_FORMAT = 2


def begin(job: Job, inputs: Inputs, plan: Mapping[str, Any]) -> bool:
    """Write down what is going to be done; or see that it is what was begun here.

    What a killed process left half-written is removed.

    Args:
        plan: by the names of the command line, what the result depends on beside the inputs and the
            job's options.

    Returns:
        Whether nothing was begun yet.

    Raises:
        UserError: something else was begun in the folder.
    """
    own = {name.replace("_", "-"): value for name, value in asdict(job.options).items()}
    wanted = json.loads(json.dumps({"format": _FORMAT, **plan, "seed": job.seed, **own}))
    path = job.folder / PLAN
    for unfinished in job.state.glob("*.writing"):
        unfinished.unlink(missing_ok=True)
    if path.exists():
        _compare(job, json.loads(path.read_text("utf-8")), wanted)
        change = inputs.change_since(Inputs.load(job.state / _INPUTS))
        if change:
            raise UserError(
                f"--out: {job.folder} was begun with other inputs: {change}; delete it and start "
                "again, or give another folder"
            )
        for unfinished in job.folder.glob(".*.writing"):  # of ``write_atomically``
            unfinished.unlink(missing_ok=True)
        return False
    _empty(job)  # a kill while another job was forgotten leaves its surveys, reports and tokenizer
    inputs.save(job.state / _INPUTS)
    write_atomically(path, json.dumps(wanted, indent=1) + "\n")
    return True


def _empty(job: Job) -> None:
    for path in (*job.state.iterdir(), *job.beside.iterdir()):
        if path not in (job.beside, job.state / _LOCK):
            path.unlink()


def _compare(job: Job, begun: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for name in [*wanted, *begun]:
        old, new = begun.get(name), wanted.get(name)
        if old != new:
            raise UserError(
                f"--out: {job.folder} was begun with {name} {old!r}, this is {name} {new!r}; use "
                "the same, or give another folder"
            )


def put_beside(job: Job, name: str, content: str | bytes) -> None:
    """Write a file that will lie beside the shards.

    Raises:
        UserError: there is one already, and it is another.
    """
    path = job.beside / name
    wanted = content.encode() if isinstance(content, str) else content
    if path.exists() and path.read_bytes() != wanted:
        raise UserError(
            f"--out: {job.folder} was begun with another {name}; use the same, or give another "
            "folder"
        )
    write_atomically(path, wanted)


@contextmanager
def locked(job: Job) -> Iterator[None]:
    """Make the folder, and keep others from packing into it meanwhile.

    Raises:
        UserError: it holds something else, cannot be made or written to, or somebody is at work in
            it. Nothing is changed in it.
    """
    try:
        _refuse_foreign(job)
        job.beside.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(job.state / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(f"--out: cannot write to {job.folder}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"--out: another process is packing into {job.folder}; wait for "
                "it, or give another folder"
            ) from error
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(descriptor)


def _refuse_foreign(job: Job) -> None:
    """Refuse a folder that no job has begun in and is not empty, or that has lost its state."""
    if (job.folder / PLAN).exists():
        if not (job.state / _INPUTS).exists():
            raise UserError(
                f"--out: {job.folder} was packed, but its {job.state.name}/{_INPUTS} is gone, so "
                "nothing can be added or checked; give a new folder"
            )
        return
    there = job.folder.iterdir() if job.folder.exists() else ()
    foreign = sorted(path.name for path in there if not path.name.startswith("."))
    if foreign:
        some = ", ".join(foreign[:3])
        raise UserError(f"--out: {job.folder} is not empty ({some}); give a new folder")


@contextmanager
def writing(job: Job, path: Path) -> Iterator[Path]:
    """A file that becomes ``path`` when the block ends, if it is there, and goes if that fails.

    Its name is this process's own: a worker whose parent was killed may outlive it for a moment.
    """
    unfinished = job.state / f"{path.name}.{os.getpid()}.writing"
    try:
        yield unfinished
        if unfinished.exists():
            os.replace(unfinished, path)
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)


def forget(job: Job) -> None:
    """Undo ``begin``, where nothing came of it."""
    (job.folder / PLAN).unlink(missing_ok=True)
    shutil.rmtree(job.state, ignore_errors=True)
    with suppress(OSError):
        job.folder.rmdir()


def publish(job: Job) -> None:
    """Put what belongs beside the shards there."""
    for path in sorted(job.beside.iterdir()):
        write_atomically(job.folder / path.name, path.read_bytes())


def tidy(job: Job) -> None:
    """Remove what only unfinished work needs."""
    for path in sorted(job.state.glob("lot-*")):  # a survey before its spill, which it needs
        path.unlink()
