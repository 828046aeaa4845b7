"""What becomes of steps that go wrong: they are left out and named, and the run goes back."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from selfdistill.config import TrainConfig
from selfdistill.data.ledger import MicroBatch
from selfdistill.data.steps import data_step
from selfdistill.engine.checkpoint_files import Checkpoint, read_checkpoint
from selfdistill.engine.metrics import MetricsWriter, Progress
from selfdistill.engine.step_guard import StepGuard
from selfdistill.errors import HealthError
from selfdistill.objective.data2vec import StepOutput

NAMED = 5
"""Samples named on the console; ``left_out.jsonl`` names all."""

Samples = Mapping[str, Sequence[str]]
"""Keys by modality."""


class Recovery:
    """Keeps account of the steps that were left out. All processes call its methods together.

    Args:
        config: of the run.
        accelerator: of the run.
        writer: None on processes other than the main one.
        progress: the console.

    Attributes:
        guard: judges the steps.
        good: the last checkpoint with a good step behind it; None on processes other than the
            main one.
    """

    def __init__(
        self,
        config: TrainConfig,
        accelerator: Accelerator,
        writer: MetricsWriter | None,
        progress: Progress,
    ) -> None:
        self.guard = StepGuard(config)
        self.accelerator = accelerator
        self.writer = writer
        self.progress = progress
        self.good: Path | None = None
        self._last_fault = ""

    def accepts(
        self,
        step: int,
        losses: Mapping[str, float],
        grad_norm: float,
        micro_batches: Sequence[MicroBatch],
        outputs: Sequence[Mapping[str, StepOutput]],
    ) -> bool:
        """Whether a step may be taken; else its samples are told and written to ``left_out.jsonl``.

        Args:
            step: steps done before.
            losses: of each modality, over all processes.
            grad_norm: before clipping.
            micro_batches, outputs: of this process.
        """
        place = data_step(step, self.guard.passed_over)
        fault = self.guard.check(place, losses, grad_norm)
        if not fault:
            return True
        samples = self._samples(micro_batches, outputs)
        self._last_fault = f"{fault} (samples {_in_words(samples)})"
        self.progress.log(f"step {step + 1} is left out: {self._last_fault}")
        if self.writer is not None:
            row = {"step": step + 1, "data_step": place, "fault": fault, "samples": samples}
            self.writer.write_left_out(row)
        return False

    def target(self, step: int) -> tuple[Path, Checkpoint]:
        """The checkpoint to go back to, when as many steps were left out as may be.

        Raises:
            HealthError: there is none, or going back to it was in vain before.
        """
        in_a_row, most = len(self.guard.in_a_row), self.guard.config.max_rollbacks
        path: Path | None
        (path,) = broadcast_object_list([self.good])
        checkpoint = read_checkpoint(path) if path is not None and path.is_dir() else None
        if path is None or checkpoint is None or not self.guard.may_go_back_to(checkpoint.step):
            again = f"the run went back to {path} {most} times before (train.max_rollbacks)"
            why = again if checkpoint else "there is no good checkpoint to go back to"
            raise HealthError(
                f"step {step}: {in_a_row} steps in a row were left out (train.max_left_out), and "
                f"{why}. At the last one {self._last_fault}; left_out.jsonl in the run's folder "
                "names all samples. Look at them, or try a smaller optim.lr, optim.clip_norm, or "
                "train.precision=bf16 or fp32"
            )
        self.progress.log(
            f"{in_a_row} steps in a row were left out: going back to {path}; the batches of these "
            "steps are passed over"
        )
        return path, checkpoint

    def _samples(
        self, micro_batches: Sequence[MicroBatch], outputs: Sequence[Mapping[str, StepOutput]]
    ) -> Samples:
        """Of the micro-batches whose own loss is not finite; of all where there is none."""
        every: dict[str, list[str]] = {}
        suspects: dict[str, list[str]] = {}
        for loaded, found in zip(micro_batches, outputs, strict=True):
            for name, part in loaded.items():
                every.setdefault(name, []).extend(part.batch.keys)
                if not math.isfinite(float(found[name].loss)):
                    suspects.setdefault(name, []).extend(part.batch.keys)
        gathered = gather_object([(suspects, every)])
        return _joined([own for own, _ in gathered]) or _joined([own for _, own in gathered])

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps; plain JSON values."""
        return {"good_checkpoint": self.good and self.good.name, **self.guard.state()}

    def load_state(self, state: Mapping[str, Any], path: Path) -> None:
        """Take the state of the checkpoint at ``path``."""
        good = state["good_checkpoint"]
        self.good = path.with_name(good) if good else None
        self.guard.load_state(state)


def _joined(parts: Sequence[Samples]) -> Samples:
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: [key for part in parts for key in part.get(name, [])] for name in names}


def _in_words(samples: Samples) -> str:
    """The first few of them, with their modality where there are several."""
    parts = []
    for name, keys in samples.items():
        more = f" and {len(keys) - NAMED} more" if len(keys) > NAMED else ""
        parts.append((f"{name} " if len(samples) > 1 else "") + ", ".join(keys[:NAMED]) + more)
    return "; ".join(parts)
