"""Checkpoints of a model that is being trained on one process or many."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from selfdistill.engine.checkpoint import Checkpointer
from selfdistill.engine.checkpoint_files import Checkpoint
from selfdistill.engine.optimizer_state import pack_optimizer, unpack_optimizer
from selfdistill.engine.sharding import gather, spread
from selfdistill.errors import UserError


class Saver:
    """Takes the state of all processes, which the main one writes while training goes on.

    All processes call the methods together, but for ``check`` and ``settle``.

    Args:
        model, optimizer: not wrapped.
        accelerator: of the run.
        checkpointer: of the run folder; None on processes other than the main one.
        best: see ``CheckpointConfig``.

    Attributes:
        last: the checkpoint that was begun or restored last; the main process alone knows of those
            that were begun.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        accelerator: Accelerator,
        checkpointer: Checkpointer | None,
        best: str,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.accelerator = accelerator
        self.checkpointer = checkpointer
        self.best = best
        self.last: Path | None = None
        self._copies: dict[str, Tensor] | None = None if checkpointer is None else {}

    def check(self) -> None:
        """Look after what is being written.

        Raises:
            SelfdistillError: it cannot be written.
        """
        if self.checkpointer is not None:
            self.checkpointer.check()

    def save(
        self,
        step: int,
        state: dict[str, Any],
        interval: Mapping[str, Tensor],
        good: Path | None = None,
    ) -> None:
        """Copy the weights and the optimiser's state, and begin to write them.

        Args:
            step: optimiser steps done.
            state, interval: see ``Checkpoint``.
            good: see ``Checkpointer.save``.

        Raises:
            SelfdistillError: the checkpoint before could not be written.
        """
        if self.checkpointer is not None:
            self.checkpointer.wait()  # it reads the copies
        model = gather(self.model.state_dict(), self._copies)
        optimizer = gather(pack_optimizer(self.optimizer, self.model), self._copies)
        if self.checkpointer is not None:
            # sums are replaced by new tensors, not changed
            sums = {name: total.cpu() for name, total in interval.items()}
            whole = Checkpoint(step, model, optimizer, state, sums)
            self.last = self.checkpointer.begin(whole, good)

    def rate(self, step: int, values: Mapping[str, float]) -> None:
        """Let the checkpoint of a step stay if it is the best so far; on the main process.

        Args:
            step: the values are of.
            values: of probes or figures; those of several sets or modalities have names that end
                alike, and count by their mean.
        """
        name = self.best.removeprefix("-")
        found = [value for key, value in values.items() if key.rpartition("/")[2] == name]
        if self.checkpointer is None or not found or not all(map(math.isfinite, found)):
            return
        mean = sum(found) / len(found)
        self.checkpointer.rate(step, -mean if self.best.startswith("-") else mean, self.best)

    def remove_after(self, step: int) -> None:
        """Remove the checkpoints of later steps, when nothing is being written."""
        if self.checkpointer is not None:
            self.checkpointer.remove_after(step)

    def finish(self) -> None:
        """Wait until all is written: a launcher ends every process soon after the first has ended.

        Raises:
            SelfdistillError: it cannot be written.
        """
        if self.checkpointer is not None:
            self.checkpointer.wait()
        self.accelerator.wait_for_everyone()

    def settle(self) -> None:
        """Wait until nothing is being written, whatever becomes of it; each process by itself."""
        if self.checkpointer is not None:
            self.checkpointer.settle()

    def restore(self, checkpoint: Checkpoint, path: Path) -> None:
        """Take the weights and the optimiser's state from a checkpoint.

        Raises:
            UserError: they do not fit.
        """
        own = self.model.state_dict()
        for name in sorted(own.keys() | checkpoint.model.keys()):
            theirs, ours = (
                [*t[name].shape] if name in t else "none" for t in (checkpoint.model, own)
            )
            if theirs != ours:
                raise UserError(
                    f"resume: the shape of '{name}' is {theirs} in {path} and {ours} with this "
                    "config; put back what was changed, or choose another run_dir"
                )
        model = {n: spread(t, own[n]) if n in own else t for n, t in checkpoint.model.items()}
        self.model.load_state_dict(model)
        unpack_optimizer(self.optimizer, self.model, checkpoint.optimizer)
        self.last = path
