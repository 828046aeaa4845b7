"""Judges each step on the device, which then takes it or not without the host.

A host that read the loss of every step would wait for the device to finish it, and the device for
the host to hand out the next one.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

HISTORY = 100
"""Steps whose losses a new one is measured by. By their largest, because a healthy loss may dip to
a tenth and come back within twenty steps, as that of the audio sample does."""
MIN_HISTORY = 20
"""Fewer are no measure."""


class Verdict(NamedTuple):
    """What was found of a step.

    Attributes:
        taken: bool scalar on the device.
        numbers: float64 [2 + 3 n] on the device, for ``StepJudge.fault``.
    """

    taken: Tensor
    numbers: Tensor


class StepJudge:
    """Compares the losses of a step with those of the steps that were taken before.

    Args:
        names: of the n modalities.
        max_jump: see ``TrainConfig.max_loss_jump``.
        device: where the losses are.
    """

    def __init__(self, names: Iterable[str], max_jump: float, device: torch.device) -> None:
        self.names = list(names)
        self.max_jump = max_jump
        # the newest last; NaN where there was none yet
        shape = (HISTORY, len(self.names))
        self._losses = torch.full(shape, math.nan, dtype=torch.float64, device=device)

    def judge(self, losses: Tensor, grad_norm: Tensor) -> Verdict:
        """Whether a step may be taken; if so, its losses are remembered.

        Args:
            losses: float64 [n], of each modality over all processes.
            grad_norm: scalar, before clipping.
        """
        known = self._losses.isfinite()
        seen = known.sum(0)
        largest = self._losses.where(known, -math.inf).amax(0)
        limit = self.max_jump * largest
        jumps = (seen >= MIN_HISTORY) & (limit > 0) & (losses > limit)
        taken = losses.isfinite().all() & grad_norm.isfinite() & ~jumps.any()
        fresh = torch.cat([self._losses[1:], losses[None]])
        self._losses = fresh.where(taken, self._losses)
        numbers = torch.cat([torch.stack([taken, grad_norm]), losses, largest, seen])
        return Verdict(taken, numbers)

    def fault(self, numbers: Sequence[float]) -> str:
        """Why a step was not taken; empty: it was.

        Args:
            numbers: of its ``Verdict``.
        """
        taken, grad_norm, *rest = numbers
        if taken:
            return ""
        n = len(self.names)
        for name, loss, largest, seen in zip(
            self.names, rest[:n], rest[n : 2 * n], rest[2 * n :], strict=True
        ):
            whose = f" of {name}" if n > 1 else ""
            if not math.isfinite(loss):
                return f"the loss{whose} is {loss}"
            if seen >= MIN_HISTORY and loss > self.max_jump * largest > 0:
                return (
                    f"the loss{whose} is {loss:.4g}, {loss / largest:.1f} times the largest of "
                    f"the {seen:.0f} steps before (train.max_loss_jump)"
                )
        return f"the gradient's norm is {grad_norm}"

    def state(self) -> dict[str, list[float]]:
        """The losses of the last steps by modality, as checkpoints keep them."""
        columns = self._losses.T.tolist()
        return {
            name: [loss for loss in column if math.isfinite(loss)]
            for name, column in zip(self.names, columns, strict=True)
        }

    def load_state(self, state: Mapping[str, Sequence[float]]) -> None:
        """Take what ``state`` gave."""
        columns = [[math.nan] * (HISTORY - len(state[n])) + [*state[n]] for n in self.names]
        self._losses = torch.tensor(columns, dtype=torch.float64, device=self._losses.device).T
