"""What is summed up between two lines of the log."""

import math
import time
from collections.abc import Iterable, Mapping, Sequence

import torch
from accelerate import Accelerator

from selfdistill.objective.data2vec import StepOutput
from selfdistill.objective.moments import Moments, effective_rank, spectral_slope

OF_THE_RUN = ("loss", "grad_norm", "grad_norm_blocks")
OF_A_MODALITY = (
    "loss",
    "masked_share",
    "target_std",
    "prediction_std",
    "sample_std",
    "target_rank",
    "prediction_rank",
    "target_slope",
    "target_cosine",
    "prediction_cosine",
    "explained_variance",
    "grad_norm_encoder",
    "grad_norm_predictor",
)


Gradients = tuple[dict[str, float], dict[str, dict[str, float]]]
"""Norms of the shared blocks' and of each modality's own parts."""


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
        self._gradients: Gradients = ({}, {name: {} for name in self._modalities})
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

    def add_gradients(self, norms: Gradients, factor: float) -> None:
        """Note the norms of the last step's parts, times a factor."""
        run, own = norms
        self._gradients = (
            {key: value * factor for key, value in run.items()},
            {name: {key: v * factor for key, v in part.items()} for name, part in own.items()},
        )

    def take(
        self, accelerator: Accelerator
    ) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
        """The interval's metrics over all processes; begins a new interval.

        Returns:
            Those of the run and those of each modality. Without a finished step in it, all but
            ``data_wait`` are NaN.
        """
        whole = dict.fromkeys(OF_THE_RUN, float("nan"))
        of_blocks, of_parts = self._gradients
        if self._losses:
            whole |= {"loss": _mean(self._losses), "grad_norm": _mean(self._norms), **of_blocks}
        whole["data_wait"] = self.data_wait / max(time.monotonic() - self._since, 1e-9)
        own = {
            name: sums.metrics(accelerator) | of_parts[name] for name, sums in self._sums.items()
        }
        self._restart()
        return whole, own


class _Sums:
    """Those of one modality."""

    def __init__(self) -> None:
        self._moments: tuple[Moments, Moments] | None = None
        self._rest = torch.empty(0)  # masked tokens, valid tokens, error, norms behind each block
        self._losses: list[float] = []

    def add(self, outputs: Sequence[StepOutput], loss: float) -> None:
        for output in outputs:
            fresh = (output.targets, output.predictions)
            spread = output.sample_variance  # NaN where there was one sample only
            known = torch.stack([spread.nan_to_num(), spread.isfinite().float()])
            rest = torch.stack([output.tokens, output.valid, output.error])
            rest = torch.cat([rest, known, output.teacher_norms])
            if self._moments is None:
                self._moments, self._rest = fresh, rest.double()
            else:
                self._moments = (self._moments[0].plus(fresh[0]), self._moments[1].plus(fresh[1]))
                self._rest += rest
        self._losses.append(loss)

    def metrics(self, accelerator: Accelerator) -> dict[str, float]:
        """Over all processes; NaN where nothing was added."""
        if self._moments is None:
            return dict.fromkeys(OF_A_MODALITY, float("nan"))
        parts = [part.reshape(-1) for moments in self._moments for part in moments]
        summed = torch.cat([self._rest, *parts])
        if accelerator.num_processes > 1:
            summed = accelerator.reduce(summed, reduction="sum")
        masked, valid, error, spread, batches, *norms = summed[: len(self._rest)].tolist()
        width = self._moments[0].total.shape[0]
        targets, predictions = (
            Moments(row[0], row[1 : width + 1], row[width + 1 :].reshape(width, width))
            for row in summed[len(self._rest) :].chunk(2)
        )
        spectrum = targets.spectrum()
        figures = {
            "loss": _mean(self._losses),
            "masked_share": masked / valid,
            "target_std": targets.std(),
            "prediction_std": predictions.std(),
            "sample_std": math.sqrt(spread / batches) if batches else float("nan"),
            "target_rank": effective_rank(spectrum),
            "prediction_rank": effective_rank(predictions.spectrum()),
            "target_slope": spectral_slope(spectrum),
            "target_cosine": targets.cosine(),
            "prediction_cosine": predictions.cosine(),
            # what a constant, the targets' mean, would leave unexplained is their variance
            "explained_variance": 1 - error / (float(spectrum.sum()) * max(masked - 1, 1)),
        }
        return figures | {f"teacher_norm_{i:02d}": n / valid for i, n in enumerate(norms, start=1)}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
