"""The checkpoints of a run: each is complete or absent, at whatever instant the run is killed.

A folder ``RUN/checkpoints/step-XXXXXXXX/`` is written under a hidden name and renamed when all of
it is on the disk; one that goes is renamed before it is removed.
"""

import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from selfdistill.durable import sync_folder
from selfdistill.engine.checkpoint_files import (
    EXPECTED,
    FOLDER_NAME,
    MANIFEST,
    Checkpoint,
    read_checkpoint,
    verify_checkpoint,
    write_checkpoint,
)
from selfdistill.errors import SelfdistillError, UserError

logger = logging.getLogger(__name__)

_ADAM = {"exp_avg", "exp_avg_sq", "step"}


def _is_intact(path: Path) -> bool:
    try:
        return verify_checkpoint(path) >= 0
    except UserError:
        return False


def _remove(path: Path) -> None:
    """Remove a checkpoint so that no crash leaves half of it under its own name."""
    hidden = path.with_name(f".removing-{path.name}")
    os.rename(path, hidden)
    shutil.rmtree(hidden, ignore_errors=True)


class Checkpointer:
    """Writes and finds the checkpoints of one run; one process at a time may save.

    Args:
        folder: ``RUN/checkpoints``; made by the first save.
        keep: how many to keep.

    Raises:
        UserError: ``keep`` is below 1.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        if keep < 1:
            raise UserError(f"checkpoint.keep: {keep} is below 1")
        self.folder = folder
        self.keep = keep

    def save(self, checkpoint: Checkpoint) -> Path:
        """Write a checkpoint, unless its step is there and intact, and drop those beyond ``keep``.

        Raises:
            SelfdistillError: it cannot be written; the earlier ones are untouched.
        """
        final = self.folder / f"step-{checkpoint.step:08d}"
        writing = self.folder / f".writing-{final.name}"
        try:
            if _is_intact(final):
                return final
            self._make_folder()
            writing.mkdir()
            write_checkpoint(writing, checkpoint)
            if final.exists():
                _remove(final)
            os.rename(writing, final)
            sync_folder(self.folder)
        except OSError as error:
            shutil.rmtree(writing, ignore_errors=True)
            raise SelfdistillError(self._failure(checkpoint, error)) from error
        self._prune(checkpoint.step)
        return final

    def complete(self) -> list[Path]:
        """The checkpoints with a manifest, by step."""
        found = [path for path in self._published() if (path / MANIFEST).is_file()]
        return sorted(found, key=_step_of)

    def newest(self) -> Path | None:
        """The newest intact checkpoint, or None where there is none at all.

        A damaged one is named in a warning and passed over.

        Raises:
            UserError: there are checkpoints, but all are damaged; starting afresh would bury them.
        """
        complete = self.complete()
        unfinished = {*self._published(), *self.folder.glob(".writing-step-*")} - {*complete}
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
                f"{self.folder}: all {len(complete)} checkpoints are damaged; "
                "restore one, or choose another run_dir to start afresh"
            )
        return None

    def load(self, path: Path) -> Checkpoint:
        """Read a checkpoint after verifying it; tensors are on the CPU.

        Raises:
            UserError: ``path`` is no checkpoint, or it is damaged.
        """
        return read_checkpoint(path)

    def _published(self) -> list[Path]:
        return [path for path in self.folder.glob("step-*") if FOLDER_NAME.fullmatch(path.name)]

    def _make_folder(self) -> None:
        if not self.folder.exists():
            self.folder.mkdir(parents=True)
            sync_folder(self.folder.parent)
        for pattern in (".writing-step-*", ".removing-step-*"):
            for stale in self.folder.glob(pattern):
                shutil.rmtree(stale, ignore_errors=True)

    def _prune(self, step: int) -> None:
        # later ones belong to a run that was taken up again before them; they must not push out
        # what was just saved
        done = [path for path in self.complete() if _step_of(path) <= step]
        for path in done[: -self.keep]:
            try:
                _remove(path)
            except OSError as error:
                logger.warning("cannot remove the old checkpoint %s: %s", path, error.strerror)

    def _failure(self, checkpoint: Checkpoint, error: OSError) -> str:
        tensors = [*checkpoint.model.values(), *checkpoint.optimizer.values()]
        needed = sum(t.nbytes for t in tensors) + len(json.dumps(checkpoint.state))
        there = next(p for p in (self.folder, *self.folder.absolute().parents) if os.path.exists(p))
        complete = self.complete()
        return (
            f"cannot save the checkpoint of step {checkpoint.step}: {error}; it needs {needed} "
            f"bytes, {shutil.disk_usage(there).free} are free in {there}; "
            f"the last complete checkpoint is {complete[-1] if complete else 'none'}. "
            "Make room or mend the permissions, then run the same command again"
        )


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def find_checkpoint(path: Path, key: str = "resume") -> Path:
    """The checkpoint meant by the path of a checkpoint, of a run, or of its checkpoints folder.

    Args:
        key: the config's name of ``path``, for the error message.

    Raises:
        UserError: there is none.
    """
    if (path / MANIFEST).is_file():
        return path
    folder = path / "checkpoints"
    newest = Checkpointer(folder if folder.is_dir() else path, keep=1).newest()
    if newest is None:
        raise UserError(f"{key}: no checkpoint in '{path}'; {EXPECTED}, or a run's folder")
    return newest


def pack_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """AdamW's state by parameter name: ``NAME/exp_avg``, ``NAME/exp_avg_sq``, ``NAME/step``.

    Parameters that never had a gradient have no entry.

    Args:
        optimizer: over parameters of ``model``.
        model: not wrapped.
    """
    return {
        f"{name}/{key}": value
        for name, parameter in model.named_parameters()
        if parameter in optimizer.state
        for key, value in optimizer.state[parameter].items()
    }


def unpack_optimizer(
    optimizer: torch.optim.Optimizer, model: nn.Module, tensors: Mapping[str, Tensor]
) -> None:
    """Put the state that ``pack_optimizer`` took back, bit by bit.

    Raises:
        UserError: names or shapes do not fit the model's; the optimizer is untouched.
    """
    parameters = dict(model.named_parameters())
    groups = {p: group for group in optimizer.param_groups for p in group["params"]}
    packed: dict[str, dict[str, Tensor]] = {}
    for full, value in tensors.items():
        name, _, key = full.rpartition("/")
        parameter = parameters.get(name)
        if parameter is None or parameter not in groups or key not in _ADAM:
            raise UserError(f"optimizer state '{full}' belongs to no trained parameter")
        shape = torch.Size() if key == "step" else parameter.shape
        if value.shape != shape:
            raise UserError(f"optimizer state '{full}' has shape {[*value.shape]}, not {[*shape]}")
        packed.setdefault(name, {})[key] = value
    for name, entries in packed.items():
        if missing := _ADAM - entries.keys():
            raise UserError(f"optimizer state '{name}/{min(missing)}' is missing")
    optimizer.state.clear()
    for name, entries in packed.items():
        parameter = parameters[name]
        group = groups[parameter]
        # AdamW counts steps on the host unless its kernel reads the count on the device
        on_device = group.get("fused") or group.get("capturable")
        optimizer.state[parameter] = {
            "step": entries["step"].to(parameter.device if on_device else "cpu", copy=True),
            # the moments have the parameter's strides, as AdamW makes them
            **{
                key: torch.empty_like(parameter, dtype=entries[key].dtype).copy_(entries[key])
                for key in ("exp_avg", "exp_avg_sq")
            },
        }
