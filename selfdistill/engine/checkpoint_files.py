"""One checkpoint folder: how it is written, verified and read.

It holds ``model.safetensors``, ``optimizer.safetensors``, ``state.json``, between two lines of the
log ``interval.safetensors`` and, written last, ``manifest.json`` with the size and the SHA-256 of
the others. There is no pickle in it.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from selfdistill.durable import sync_folder, write_synced
from selfdistill.errors import UserError
from selfdistill.run_folder.layout import CHECKPOINT, MANIFEST
from selfdistill.tensor_files import save_tensors

_FORMAT = 2
_MODEL, _OPTIMIZER, _STATE = "model.safetensors", "optimizer.safetensors", "state.json"
_INTERVAL = "interval.safetensors"
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
