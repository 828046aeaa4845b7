"""What is summed up between two lines of the log."""

import math
import time
from collections.abc import Iterable, Mapping

import torch
from accelerate import Accelerator
from torch import Tensor

from selfdistill.engine.gradients import Norms
from selfdistill.engine.sums import summed
from selfdistill.engine.training_step import Step
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


WHOLE = "all processes"
"""What a state calls the sums that are no modality's; no modality has such a name."""


class Interval:
    """Sums over the steps of a logging interval; they stay on the device until ``take``.

    A step that was not taken would spoil every sum, and only the device knows that by then.

    Args:
        modalities: their names.

    Attributes:
        data_wait: seconds spent waiting for the loader.
    """

    def __init__(self, modalities: Iterable[str]) -> None:
        self._modalities = list(modalities)
        self.restart()

    def restart(self) -> None:
        """Forget the steps so far."""
        self._sums = {name: _Sum() for name in self._modalities}
        self._widths: dict[str, int] = {}
        # of all processes: steps, loss, gradient norm, losses of the modalities
        self._whole = _Sum()
        # of the last step, whose outputs would take memory until the end of the next
        self._gradients: Norms | None = None
        self._taken: Tensor | None = None
        self.restart_clock()

    def restart_clock(self) -> None:
        """Time counts from now on."""
        self._since = time.monotonic()
        self.data_wait = 0.0

    def add(self, step: Step) -> None:
        """Add a step."""
        for name, sums in self._sums.items():
            for output in step.outputs:
                self._widths[name] = output[name].targets.total.shape[0]
                sums.add(_flat(output[name]), step.taken)
        whole = torch.stack([torch.ones_like(step.loss), step.loss, step.grad_norm])
        self._whole.add(torch.cat([whole, step.losses]), step.taken)
        self._gradients, self._taken = step.gradients, step.taken

    def take(
        self, accelerator: Accelerator
    ) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
        """The interval's metrics over all processes; begins a new interval.

        Returns:
            Those of the run and those of each modality. Without a step that was taken in it, all
            but ``data_wait`` are NaN.
        """
        of_run, of_parts = self._norms()
        steps, loss, norm, *losses = self._whole.read() or [0.0] * (3 + len(self._modalities))
        run = dict.fromkeys(OF_THE_RUN, math.nan)
        own = {name: dict.fromkeys(OF_A_MODALITY, math.nan) for name in self._modalities}
        if steps:
            run |= {"loss": loss / steps, "grad_norm": norm / steps, **of_run}
            for (name, sums), its_loss in zip(self._sums.items(), losses, strict=True):
                total = sums.over_processes(accelerator)
                assert total is not None, "there were steps"
                figures = _figures(total, self._widths[name])
                own[name] = {"loss": its_loss / steps, **figures, **of_parts[name]}
        run["data_wait"] = self.data_wait / max(time.monotonic() - self._since, 1e-9)
        self.restart()
        return run, own

    def state(self, accelerator: Accelerator) -> dict[str, Tensor]:
        """What a checkpoint keeps: the sums, float64, by name, over all processes, which must ask
        together; empty where there is no step yet."""
        sums = {WHOLE: self._whole.total}
        sums |= {name: own.over_processes(accelerator) for name, own in self._sums.items()}
        return {name: total for name, total in sums.items() if total is not None}

    def load_state(self, state: Mapping[str, Tensor], accelerator: Accelerator) -> None:
        """Go on with the sums of a checkpoint; those over all processes belong to the main one."""
        self.restart()
        for name, total in state.items():
            if name == WHOLE:
                self._whole.total = total.to(accelerator.device)
            else:
                own = total if accelerator.is_main_process else torch.zeros_like(total)
                self._sums[name].total = own.to(accelerator.device)

    def _norms(self) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
        """Those of the gradient's parts in the last step, if it was taken."""
        if self._gradients is None or not self._taken:
            return {}, {name: {} for name in self._modalities}
        run, own = self._gradients
        return (
            {key: float(value) for key, value in run.items()},
            {name: {key: float(v) for key, v in part.items()} for name, part in own.items()},
        )


class _Sum:
    """Of vectors on the device.

    Attributes:
        total: float64 [n]; None: nothing was added yet.
    """

    def __init__(self) -> None:
        self.total: Tensor | None = None

    def add(self, numbers: Tensor, taken: Tensor) -> None:
        """Add float64 [n] where ``taken``."""
        before = torch.zeros_like(numbers) if self.total is None else self.total
        self.total = torch.where(taken, before + numbers, before)

    def read(self) -> list[float]:
        """The sum; empty where nothing was added."""
        return [] if self.total is None else self.total.tolist()

    def over_processes(self, accelerator: Accelerator) -> Tensor | None:
        """That of all processes, which must ask together, and have all added something or none."""
        return None if self.total is None else summed(self.total, accelerator)


def _flat(output: StepOutput) -> Tensor:
    """float64 [n], for ``_figures``."""
    spread = output.sample_variance  # NaN where there was one sample only
    known = [spread.nan_to_num(), spread.isfinite()]
    counted = torch.stack([output.tokens, output.valid, output.error, *known])
    moments = [part.reshape(-1) for of in (output.targets, output.predictions) for part in of]
    return torch.cat([*moments, counted, output.teacher_norms])


def _figures(numbers: Tensor, width: int) -> dict[str, float]:
    """Figures of a modality, of sums of ``_flat``."""
    size = 1 + width + width * width
    targets, predictions = (
        Moments(row[0], row[1 : width + 1], row[width + 1 :].reshape(width, width))
        for row in numbers[: 2 * size].chunk(2)
    )
    masked, valid, error, spread, batches, *norms = numbers[2 * size :].tolist()
    spectrum = targets.spectrum()
    figures = {
        "masked_share": masked / valid,
        "target_std": targets.std(),
        "prediction_std": predictions.std(),
        "sample_std": math.sqrt(spread / batches) if batches else math.nan,
        "target_rank": effective_rank(spectrum),
        "prediction_rank": effective_rank(predictions.spectrum()),
        "target_slope": spectral_slope(spectrum),
        "target_cosine": targets.cosine(),
        "prediction_cosine": predictions.cosine(),
        # what a constant, the targets' mean, would leave unexplained is their variance
        "explained_variance": 1 - error / (float(spectrum.sum()) * max(masked - 1, 1)),
    }
    return figures | {f"teacher_norm_{i:02d}": n / valid for i, n in enumerate(norms, start=1)}
