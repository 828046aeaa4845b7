"""What becomes of steps that go wrong: they are left out and named, and the run goes back."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

from selfdistill.config import RunConfig
from selfdistill.data.ledger import MicroBatch
from selfdistill.data.steps import data_step
from selfdistill.engine.checkpoint_files import Checkpoint
from selfdistill.engine.metrics import MetricsWriter, Progress
from selfdistill.engine.step_guard import StepGuard
from selfdistill.engine.step_judge import StepJudge
from selfdistill.engine.together import read_on_all
from selfdistill.errors import HealthError
from selfdistill.objective.data2vec import StepOutput

NAMED = 5
"""Samples named on the console; ``left_out.jsonl`` names all."""

Samples = Mapping[str, Sequence[str]]
"""Keys by modality."""


@dataclass(frozen=True)
class StepRecord:
    """What has to be known of a step until its verdict is read.

    Attributes:
        step: steps done before.
        data_step: the step of the data that it has its batches from.
        keys: of the samples of each micro-batch of this process.
        losses: the sum of each modality in each micro-batch, float32 scalars on the device.
        saved: the last checkpoint before it, as the main process knows it.
    """

    step: int
    data_step: int
    keys: Sequence[Samples]
    losses: Sequence[Mapping[str, Tensor]]
    saved: Path | None


class Recovery:
    """Keeps account of the steps that were left out. All processes call its methods together.

    Args:
        config: of the run.
        accelerator: of the run.
        writer: None on processes other than the main one.
        progress: the console.

    Attributes:
        judge: of the steps, on the device.
        guard: of what came of them.
        good: the last checkpoint with a good step behind it, as the main process knows it.
    """

    def __init__(
        self,
        config: RunConfig,
        accelerator: Accelerator,
        writer: MetricsWriter | None,
        progress: Progress,
    ) -> None:
        self.judge = StepJudge(config.parts(), config.train.max_loss_jump, accelerator.device)
        self.guard = StepGuard(config.train)
        self.accelerator = accelerator
        self.writer = writer
        self.progress = progress
        self.good: Path | None = None
        self._last_fault = ""

    def record(
        self,
        step: int,
        micro_batches: Sequence[MicroBatch],
        outputs: Sequence[Mapping[str, StepOutput]],
        saved: Path | None,
    ) -> StepRecord:
        """What ``note`` will ask for, of a step of this process; see ``StepRecord``."""
        return StepRecord(
            step,
            data_step(step, self.guard.passed_over),
            [{n: part.batch.keys for n, part in loaded.items()} for loaded in micro_batches],
            [{n: output.loss for n, output in found.items()} for found in outputs],
            saved,
        )

    def note(self, record: StepRecord, numbers: Sequence[float]) -> None:
        """Take note of a verdict; the samples of a step that was left out are told and written to
        ``left_out.jsonl``.

        Args:
            record: of the step.
            numbers: of its ``Verdict``.
        """
        fault = self.judge.fault(numbers)
        self.guard.note(record.data_step, taken=not fault)
        if not fault:
            self.good = record.saved
            return
        samples = self._samples(record)
        self._last_fault = f"{fault} (samples {_in_words(samples)})"
        step = record.step + 1
        self.progress.log(f"step {step} is left out: {self._last_fault}")
        if self.writer is not None:
            place = {"step": step, "data_step": record.data_step}
            self.writer.write_left_out({**place, "fault": fault, "samples": samples})

    def target(self, step: int) -> tuple[Path, Checkpoint]:
        """The checkpoint to go back to, when as many steps were left out as may be.

        Raises:
            HealthError: there is none, or going back to it was in vain before.
            UserError: a process cannot read it.
        """
        in_a_row, most = len(self.guard.in_a_row), self.guard.config.max_rollbacks
        is_there = self.good is not None and self.good.is_dir()
        path: Path | None
        (path,) = broadcast_object_list([self.good if is_there else None])
        checkpoint = None if path is None else read_on_all(path, self.accelerator)
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

    def _samples(self, record: StepRecord) -> Samples:
        """Of the micro-batches whose own loss is not finite; of all where there is none."""
        every: dict[str, list[str]] = {}
        suspects: dict[str, list[str]] = {}
        for keys, losses in zip(record.keys, record.losses, strict=True):
            for name in keys:
                every.setdefault(name, []).extend(keys[name])
                if not math.isfinite(float(losses[name])):
                    suspects.setdefault(name, []).extend(keys[name])
        gathered = gather_object([(suspects, every)])
        return _joined([own for own, _ in gathered]) or _joined([own for _, own in gathered])

    def go_back(self, checkpoint: Checkpoint) -> None:
        """Be as at a checkpoint, but pass over what was left out since."""
        state = checkpoint.state["recovery"]
        self.guard.go_back(checkpoint.step, state)
        self.judge.load_state(state["losses"])

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps; plain JSON values."""
        return {
            "good_checkpoint": self.good and self.good.name,
            **self.guard.state(),
            "losses": self.judge.state(),
        }

    def load_state(self, state: Mapping[str, Any], path: Path) -> None:
        """Take the state of the checkpoint at ``path``."""
        good = state["good_checkpoint"]
        self.good = path.with_name(good) if good else None
        self.guard.load_state(state)
        self.judge.load_state(state["losses"])


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
