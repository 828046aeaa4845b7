"""Tells which samples were in the steps that had to be left out."""

import math
from collections.abc import Mapping, Sequence

from accelerate import Accelerator
from accelerate.utils import gather_object

from selfdistill.data.ledger import MicroBatch
from selfdistill.engine.metrics import MetricsWriter, Progress
from selfdistill.errors import HealthError
from selfdistill.objective.data2vec import StepOutput

NAMED = 5
"""Samples named on the console; ``left_out.jsonl`` names all."""

Samples = Mapping[str, Sequence[str]]
"""Keys by modality."""


class LeftOutSteps:
    """A line on the console and one in ``left_out.jsonl`` for each.

    Args:
        accelerator: of the run.
        writer: None on processes other than the main one.
        progress: the console.

    Attributes:
        last: the last one in words.
    """

    def __init__(
        self, accelerator: Accelerator, writer: MetricsWriter | None, progress: Progress
    ) -> None:
        self.accelerator = accelerator
        self.writer = writer
        self.progress = progress
        self.last = ""

    def tell(
        self,
        step: int,
        data_step: int,
        fault: str,
        micro_batches: Sequence[MicroBatch],
        outputs: Sequence[Mapping[str, StepOutput]],
    ) -> None:
        """All processes call it together.

        Args:
            step: of training, from 1.
            data_step: see ``data.steps.data_step``.
            fault: why it is left out.
            micro_batches, outputs: of this process.
        """
        samples = self._samples(micro_batches, outputs)
        self.last = f"{fault} (samples {_in_words(samples)})"
        self.progress.log(f"step {step} is left out: {self.last}")
        if self.writer is not None:
            row = {"step": step, "data_step": data_step, "fault": fault, "samples": samples}
            self.writer.write_left_out(row)

    def too_many(self, step: int, in_a_row: int, why: str) -> HealthError:
        """What ends a run that left out so many and cannot go back; ``why`` it cannot."""
        return HealthError(
            f"step {step}: {in_a_row} steps in a row were left out (train.max_left_out), and "
            f"{why}. At the last one {self.last}; left_out.jsonl in the run's folder names all "
            "samples. Look at them, or try a smaller optim.lr, optim.clip_norm, or "
            "train.precision=bf16 or fp32"
        )

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
