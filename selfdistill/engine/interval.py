"""What is summed up between two lines of the log."""

import time
from collections.abc import Iterable, Mapping, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor

from selfdistill.objective.data2vec import StepOutput
from selfdistill.objective.loss import Moments

OF_THE_RUN = ("loss", "grad_norm")
OF_A_MODALITY = ("loss", "masked_share", "target_std", "prediction_std", "target_rank")


class Interval:
    """Sums over the steps of a logging interval; they stay on the device until ``take``.

    Args:
        modalities: their names.

    Attributes:
        data_wait: seconds spent waiting for the loader.
    """

    def __init__(self, modalities: Iterable[str]) -> None:
        self._modalities = list(modalities)
        self._restart()

    def _restart(self) -> None:
        self._sums = {name: _Sums() for name in self._modalities}
        self._losses: list[float] = []
        self._norms: list[float] = []
        self._since = time.monotonic()
        self.data_wait = 0.0

    def add(
        self,
        outputs: Sequence[Mapping[str, StepOutput]],
        losses: Mapping[str, float],
        loss: float,
        grad_norm: float,
    ) -> None:
        """Add a finished step; one that was left out would spoil every sum.

        Args:
            outputs: of its micro-batches, by modality.
            losses: of each modality, per masked token.
            loss: their weighted sum.
            grad_norm: before clipping.
        """
        for name, sums in self._sums.items():
            sums.add([output[name] for output in outputs], losses[name])
        self._losses.append(loss)
        self._norms.append(grad_norm)

    def take(
        self, accelerator: Accelerator
    ) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
        """The interval's metrics over all processes; begins a new interval.

        Returns:
            Those of the run and those of each modality. Without a finished step in it, all but
            ``data_wait`` are NaN.
        """
        whole = dict.fromkeys(OF_THE_RUN, float("nan"))
        if self._losses:
            whole = {"loss": _mean(self._losses), "grad_norm": _mean(self._norms)}
        whole["data_wait"] = self.data_wait / max(time.monotonic() - self._since, 1e-9)
        own = {name: sums.metrics(accelerator) for name, sums in self._sums.items()}
        self._restart()
        return whole, own


class _Sums:
    """Those of one modality."""

    def __init__(self) -> None:
        self._moments: tuple[Moments, Moments] | None = None
        self._masked: Tensor | None = None  # masked tokens, valid tokens
        self._losses: list[float] = []

    def add(self, outputs: Sequence[StepOutput], loss: float) -> None:
        for output in outputs:
            fresh = (output.targets, output.predictions)
            masked = torch.stack([output.tokens, output.tokens / output.masked_share]).double()
            if self._moments is None or self._masked is None:
                self._moments, self._masked = fresh, masked
            else:
                self._moments = (self._moments[0].plus(fresh[0]), self._moments[1].plus(fresh[1]))
                self._masked += masked
        self._losses.append(loss)

    def metrics(self, accelerator: Accelerator) -> dict[str, float]:
        """Over all processes; NaN where nothing was added."""
        if self._moments is None or self._masked is None:
            return dict.fromkeys(OF_A_MODALITY, float("nan"))
        parts = [part.reshape(-1) for moments in self._moments for part in moments]
        summed = torch.cat([self._masked, *parts])
        if accelerator.num_processes > 1:
            summed = accelerator.reduce(summed, reduction="sum")
        masked, rest = summed[:2], summed[2:]
        width = self._moments[0].total.shape[0]
        targets, predictions = (
            Moments(row[0], row[1 : width + 1], row[width + 1 :].reshape(width, width))
            for row in rest.chunk(2)
        )
        return {
            "loss": _mean(self._losses),
            "masked_share": float(masked[0] / masked[1]),
            "target_std": targets.std(),
            "prediction_std": predictions.std(),
            "target_rank": targets.effective_rank(),
        }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
