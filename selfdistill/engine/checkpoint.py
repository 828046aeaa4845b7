"""The checkpoints of a run: each is complete or absent, at whatever instant the run is killed.

A folder ``RUN/checkpoints/step-XXXXXXXX/`` is written under a hidden name and renamed when all of
it is on the disk; one that goes is renamed before it is removed. It is the same for any number of
processes, sharded or not: the main process writes whole tensors, whose copies need some four times
the memory of the encoder on its host. Files of several processes, as torch.distributed.checkpoint
has them, would save that, but every reader would have to put them together again.
"""

import json
import logging
import os
import shutil
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import count
from pathlib import Path
from typing import Any

from selfdistill.durable import sync_folder, write_atomically
from selfdistill.engine.checkpoint_files import (
    WRITING,
    Checkpoint,
    complete_checkpoints,
    step_of,
    verify_checkpoint,
    write_checkpoint,
)
from selfdistill.errors import SelfdistillError, UserError
from selfdistill.run_folder.layout import checkpoint_name

logger = logging.getLogger(__name__)

BEST = "best.json"


def _is_intact(path: Path) -> bool:
    try:
        return verify_checkpoint(path) >= 0
    except UserError:
        return False


def _remove(path: Path) -> None:
    """Remove a checkpoint so that no crash leaves half of it under its own name."""
    # NFS keeps what somebody still reads, perhaps of one of this name that was removed before
    names = (path.with_name(f".removing-{path.name}-{number}") for number in count(1))
    hidden = next(name for name in names if not name.exists())
    os.rename(path, hidden)
    shutil.rmtree(hidden, ignore_errors=True)


class Checkpointer:
    """Writes the checkpoints of one run, and removes those that are not to be kept.

    One process at a time may do so.

    Args:
        folder: ``RUN/checkpoints``; made by the first save, in a folder that is there.
        keep: how many to keep, 1 or more.
        keep_every: those of every so many steps stay besides; 0: none.
    """

    def __init__(self, folder: Path, keep: int, keep_every: int = 0) -> None:
        self.folder = folder
        self.keep = keep
        self.keep_every = keep_every
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._writing: Future[Path] | None = None
        self._rated: list[tuple[int, float, str]] = []

    def begin(self, checkpoint: Checkpoint, good: Path | None = None) -> Path:
        """``save`` in the background; returns where it will be.

        The tensors must stay as they are until ``wait`` has returned.

        Raises:
            SelfdistillError: the one before could not be written.
        """
        self.wait()
        self._writing = self._thread.submit(self.save, checkpoint, good)
        return self._path(checkpoint.step)

    def check(self) -> None:
        """Raise what ``save`` raised in the background, if it did."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Return when nothing is being written any more; raises as ``check`` does."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()
        self._take_ratings()

    def settle(self) -> None:
        """Return when nothing is being written any more, whether or not it could be."""
        if self._writing is not None:
            wait([self._writing])

    def save(self, checkpoint: Checkpoint, good: Path | None = None) -> Path:
        """Write a checkpoint, unless its step is there and intact, and drop those not to be kept.

        Args:
            checkpoint: to write.
            good: another one that stays, because the run may have to go back to it.

        Raises:
            SelfdistillError: it cannot be written; the earlier ones are untouched.
        """
        final = self._path(checkpoint.step)
        writing = self.folder / f"{WRITING}{final.name}"
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
        self._prune(checkpoint.step, good)
        return final

    def clear(self) -> None:
        """Remove what a kill has left of checkpoints that were being written or removed."""
        for pattern in (f"{WRITING}step-*", ".removing-step-*"):
            for stale in self.folder.glob(pattern):
                shutil.rmtree(stale, ignore_errors=True)

    def remove_after(self, step: int) -> None:
        """Remove the checkpoints of later steps, the last one first."""
        for path in reversed(complete_checkpoints(self.folder)):
            if step_of(path) > step:
                _remove(path)

    def rate(self, step: int, value: float, by: str) -> None:
        """Keep the checkpoint of a step, if there is one, unless another was rated as high.

        ``best.json`` in the folder says which one is kept. One that is being written is rated as
        soon as it is there.

        Args:
            step: of the checkpoint.
            value: the higher, the better.
            by: what the value is of; those of anything else are no measure.
        """
        self._rated.append((step, value, by))
        if self._writing is None or self._writing.done():
            self.wait()

    def _take_ratings(self) -> None:
        for step, value, by in self._rated:
            best = self._best()
            is_better = best is None or best["by"] not in (by, None) or value > best["value"]
            if self._path(step).is_dir() and is_better:
                text = json.dumps({"step": step, "value": value, "by": by}) + "\n"
                write_atomically(self.folder / BEST, text)
        self._rated.clear()

    def _best(self) -> dict[str, Any] | None:
        """What ``best.json`` says, unless that checkpoint is gone."""
        try:
            best = json.loads((self.folder / BEST).read_bytes())
            step, value = int(best["step"]), float(best["value"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        known = {"step": step, "value": value, "by": best.get("by")}
        return known if self._path(step).is_dir() else None

    def _stays(self, step: int) -> bool:
        best = self._best()
        return (best is not None and best["step"] == step) or (
            self.keep_every > 0 and step % self.keep_every == 0
        )

    def _path(self, step: int) -> Path:
        return self.folder / checkpoint_name(step)

    def _make_folder(self) -> None:
        if not self.folder.exists():
            self.folder.mkdir()  # no parents: a run whose folder was moved must not make it anew
            sync_folder(self.folder.parent)
        self.clear()

    def _prune(self, step: int, good: Path | None) -> None:
        # later ones belong to a run that was taken up again before them; they must not push out
        # what was just saved
        done = [path for path in complete_checkpoints(self.folder) if step_of(path) <= step]
        for path in done[: -self.keep]:
            if path == good or self._stays(step_of(path)):
                continue
            try:
                _remove(path)
            except OSError as error:
                logger.warning("cannot remove the old checkpoint %s: %s", path, error.strerror)

    def _failure(self, checkpoint: Checkpoint, error: OSError) -> str:
        tensors = [*checkpoint.model.values(), *checkpoint.optimizer.values()]
        needed = sum(t.nbytes for t in tensors) + len(json.dumps(checkpoint.state))
        there = next(p for p in (self.folder, *self.folder.absolute().parents) if os.path.exists(p))
        complete = complete_checkpoints(self.folder)
        return (
            f"cannot save the checkpoint of step {checkpoint.step}: {error}; it needs {needed} "
            f"bytes, {shutil.disk_usage(there).free} are free in {there}; "
            f"the last complete checkpoint is {complete[-1] if complete else 'none'}. "
            "Make room or mend the permissions, then run the same command again"
        )
