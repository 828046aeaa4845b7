"""Checkpoint folders: how one is written, verified and read, and which a run has.

One holds ``model.safetensors``, ``optimizer.safetensors``, ``state.json``, between two lines of the
log ``interval.safetensors`` and, written last, ``manifest.json`` with the size and the SHA-256 of
the others. There is no pickle in it.
"""

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from selfdistill.durable import sync_folder, write_synced
from selfdistill.errors import SelfdistillError, UserError
from selfdistill.run_folder.layout import CHECKPOINT, CHECKPOINTS, MANIFEST
from selfdistill.tensor_files import save_tensors

logger = logging.getLogger(__name__)

_FORMAT = 2
_MODEL, _OPTIMIZER, _STATE = "model.safetensors", "optimizer.safetensors", "state.json"
_INTERVAL = "interval.safetensors"
WRITING = ".writing-"
"""In front of the name of one that is being written."""
EXPECTED = "expected a folder like RUN/checkpoints/step-00005000 with a manifest.json"


@dataclass(frozen=True)
class Checkpoint:
    """All that a run needs to go on.

    Attributes:
        step: optimiser steps done.
        model: parameters and buffers by name.
        optimizer: as ``pack_optimizer`` gives it.
        state: whatever else, made of what JSON knows.
        interval: sums since the last line of the log, by name.
    """

    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]
    interval: dict[str, Tensor] = field(default_factory=dict)


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors on the CPU that share no memory, as safetensors wants them."""
    seen: set[int] = set()
    separate: dict[str, Tensor] = {}
    for name, value in tensors.items():
        tensor = value.detach().cpu().contiguous()
        storage = tensor.untyped_storage()
        if storage.nbytes() != tensor.nbytes or storage.data_ptr() in seen:
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        separate[name] = tensor
    return separate


def _digest(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        return {
            "bytes": os.fstat(file.fileno()).st_size,
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
        }


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write all files into an empty folder and wait until they are on the disk.

    Raises:
        OSError: a file cannot be written.
    """
    save_tensors(folder / _MODEL, _separate(checkpoint.model))
    save_tensors(folder / _OPTIMIZER, _separate(checkpoint.optimizer))
    write_synced(folder / _STATE, json.dumps(checkpoint.state))
    names = [_MODEL, _OPTIMIZER, _STATE]
    if checkpoint.interval:
        save_tensors(folder / _INTERVAL, _separate(checkpoint.interval))
        names.append(_INTERVAL)
    files = {name: _digest(folder / name) for name in names}
    manifest = {"format": _FORMAT, "step": checkpoint.step, "files": files}
    write_synced(folder / MANIFEST, json.dumps(manifest, indent=2) + "\n")
    sync_folder(folder)


def is_of_checkpoint(file: Path) -> bool:
    """Whether it is one that ``write_checkpoint`` writes, and in a complete checkpoint.

    Told by its own name, too, because other weights may lie beside some manifest.json.
    """
    names = (_MODEL, _OPTIMIZER, _STATE, _INTERVAL, MANIFEST)
    return file.name in names and (file.parent / MANIFEST).is_file()


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {error}") from error


def verify_checkpoint(path: Path) -> int:
    """The step of an intact checkpoint.

    Raises:
        UserError: it is none; the message names the file at fault.
    """
    if not (path / MANIFEST).is_file():
        raise UserError(f"{path} is no checkpoint; {EXPECTED}")
    manifest = _read_json(path / MANIFEST)
    try:
        version, step, files = manifest["format"], manifest["step"], dict(manifest["files"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path / MANIFEST} is damaged: no format, step and files") from error
    if version != _FORMAT:
        raise UserError(f"{path / MANIFEST} has format {version}; this program reads {_FORMAT}")
    named = CHECKPOINT.fullmatch(path.name)
    fits = isinstance(step, int) and (named is None or int(named[1]) == step)
    if {*files} - {_INTERVAL} != {_MODEL, _OPTIMIZER, _STATE} or not fits:
        raise UserError(f"{path / MANIFEST} is damaged: it speaks of step {step}, {sorted(files)}")
    for name, wanted in files.items():
        try:
            found = _digest(path / name)
        except OSError as error:
            raise UserError(f"{path / name} cannot be read: {error.strerror}") from error
        if found != wanted:
            raise UserError(
                f"{path / name} is damaged: {MANIFEST} has another size or SHA-256; "
                "restore it, or name another checkpoint"
            )
    return step


def read_state(path: Path) -> Any:
    """The state of a checkpoint alone, which is not verified; raises as ``read_checkpoint``."""
    return _read_json(path / _STATE)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint after verifying it; tensors are on the CPU.

    Raises:
        UserError: ``path`` is no checkpoint, or it is damaged.
    """
    step = verify_checkpoint(path)
    tensors: dict[str, dict[str, Tensor]] = {_INTERVAL: {}}
    for name in _read_json(path / MANIFEST)["files"]:
        if name == _STATE:
            continue
        try:
            tensors[name] = load_file(path / name)
        except SafetensorError as error:
            raise UserError(f"{path / name} is no safetensors file: {error}") from error
    state, interval = read_state(path), tensors[_INTERVAL]
    return Checkpoint(step, tensors[_MODEL], tensors[_OPTIMIZER], state, interval)


def complete_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints with a manifest in ``RUN/checkpoints``, by step.

    Raises:
        SelfdistillError: the folder cannot be read.
    """
    return _found(folder)[0]


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest intact checkpoint in ``RUN/checkpoints``, or None where there is none at all.

    A damaged one is named in a warning and passed over.

    Raises:
        UserError: there are checkpoints, but all are damaged; starting afresh would bury them.
        SelfdistillError: the folder cannot be read.
    """
    complete, unfinished = _found(folder)
    for path in sorted(unfinished):
        logger.warning("%s is an unfinished checkpoint and is ignored", path)
    for path in reversed(complete):
        try:
            verify_checkpoint(path)
        except UserError as error:
            logger.warning("%s; the checkpoint before it is tried", error)
        else:
            return path
    if complete:
        raise UserError(
            f"{folder}: all {len(complete)} checkpoints are damaged; "
            "restore one, or choose another run_dir to start afresh"
        )
    return None


def find_checkpoint(path: Path, key: str = "resume") -> Path:
    """The checkpoint meant by the path of a checkpoint, of a run, or of its checkpoints folder.

    Args:
        key: the config's name of ``path``, for the error message.

    Raises:
        UserError: there is none.
    """
    if (path / MANIFEST).is_file():
        return path
    folder = path / CHECKPOINTS
    newest = newest_checkpoint(folder if folder.is_dir() else path)
    if newest is None:
        raise UserError(f"{key}: no checkpoint in '{path}'; {EXPECTED}, or a run's folder")
    return newest


def step_of(path: Path) -> int:
    """Told by the name of a checkpoint."""
    return int(path.name.removeprefix("step-"))


def _found(folder: Path) -> tuple[list[Path], list[Path]]:
    """The checkpoints with a manifest, by step, and what else was begun.

    Pathlib, by version, takes what cannot be read for what is not there; and a run whose disk does
    not answer would start afresh.
    """
    complete: list[Path] = []
    unfinished: list[Path] = []
    try:
        for name in os.listdir(folder):
            path = folder / name
            if CHECKPOINT.fullmatch(name):
                (complete if _is_there(path / MANIFEST) else unfinished).append(path)
            elif name.startswith(f"{WRITING}step-"):
                unfinished.append(path)
    except FileNotFoundError:
        return [], []
    except OSError as error:
        raise SelfdistillError(
            f"cannot read the checkpoints in {folder}: {error.strerror}; mend that, then run the "
            "same command again"
        ) from error
    return sorted(complete, key=step_of), unfinished


def _is_there(path: Path) -> bool:
    """Raises an OSError where nobody can tell."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True
