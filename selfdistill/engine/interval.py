"""What is summed up between two lines of the log."""

import time

import torch
from accelerate import Accelerator
from torch import Tensor

from selfdistill.objective.data2vec import StepOutput
from selfdistill.objective.loss import Moments


class Interval:
    """Sums over the steps of a logging interval; they stay on the device until ``take``.

    Attributes:
        data_wait: seconds spent waiting for the loader.
    """

    def __init__(self) -> None:
        self._restart()

    def _restart(self) -> None:
        self._moments: tuple[Moments, Moments] | None = None
        self._masked: Tensor | None = None
        self._losses: list[float] = []
        self._norms: list[float] = []
        self._batches = 0
        self._since = time.monotonic()
        self.data_wait = 0.0

    def add(self, output: StepOutput) -> None:
        """Add a micro-batch."""
        fresh = (output.targets, output.predictions)
        if self._moments is None or self._masked is None:
            self._moments, self._masked = fresh, output.masked_share.clone()
        else:
            self._moments = (self._moments[0].plus(fresh[0]), self._moments[1].plus(fresh[1]))
            self._masked += output.masked_share
        self._batches += 1

    def add_step(self, loss: float, grad_norm: float) -> None:
        """Add a finished step: its loss per masked token, and the norm before clipping."""
        self._losses.append(loss)
        self._norms.append(grad_norm)

    def take(self, accelerator: Accelerator) -> dict[str, float]:
        """The interval's metrics over all processes; begins a new interval."""
        assert self._moments is not None and self._masked is not None
        packed = [torch.cat([part.reshape(-1) for part in m]) for m in self._moments]
        summed = torch.stack([*packed]).double()
        masked = torch.stack([self._masked.double() / self._batches, torch.ones_like(self._masked)])
        if accelerator.num_processes > 1:
            summed = accelerator.reduce(summed, reduction="sum")
            masked = accelerator.reduce(masked, reduction="sum")
        width = self._moments[0].total.shape[0]
        targets, predictions = (
            Moments(row[0], row[1 : width + 1], row[width + 1 :].reshape(width, width))
            for row in summed
        )
        steps = max(len(self._losses), 1)
        elapsed = max(time.monotonic() - self._since, 1e-9)
        values = {
            "loss": sum(self._losses) / steps if self._losses else float("nan"),
            "grad_norm": sum(self._norms) / steps if self._norms else float("nan"),
            "masked_share": float(masked[0] / masked[1]),
            "target_std": targets.std(),
            "prediction_std": predictions.std(),
            "target_rank": targets.effective_rank(),
            "data_wait": self.data_wait / elapsed,
        }
        self._restart()
        return values
