"""The evaluations of a run, during training and at its end."""

import json
from typing import Any

import torch

from selfdistill.config import RunConfig
from selfdistill.data.pipeline import InputPipeline
from selfdistill.durable import write_atomically
from selfdistill.engine.metrics import Progress
from selfdistill.engine.run_dir import RunDir
from selfdistill.engine.trainer import Trainer
from selfdistill.modalities.backbone import Backbone, build_backbone
from selfdistill.modalities.base import Modality
from selfdistill.probes.evaluate import Evaluator
from selfdistill.probes.table import render


class Evaluation:
    """The probes of a run: called by the trainer, on the main process only.

    The last result is kept in ``RUN/eval.json``.
    """

    def __init__(
        self,
        config: RunConfig,
        modality: Modality,
        pipeline: InputPipeline,
        trainer: Trainer,
        run_dir: RunDir | None,
        progress: Progress,
    ) -> None:
        self.config = config
        self.modality = modality
        self.trainer = trainer
        self.run_dir = run_dir
        self.progress = progress
        self.evaluator = Evaluator(config, pipeline) if config.eval.tasks else None

    def __call__(self, step: int) -> dict[str, float]:
        """Evaluate after ``step`` steps; returns what is to be logged."""
        scalars = self._evaluate(step)
        self.trainer.accelerator.wait_for_everyone()
        return scalars

    def check(self) -> None:
        """Refuse labelled sets that cannot be used, before any time is spent on training."""
        if self.evaluator is not None and self.run_dir is not None:
            self.evaluator.check()

    def make_up_for(self) -> None:
        """Evaluate a run that was killed between its last checkpoint and the end."""
        step = self.trainer.step_count
        if (
            self.run_dir is not None
            and self._last().get(self.config.modality, {}).get("step") != step
        ):
            scalars = self._evaluate(step)
            if self.trainer.writer is not None and scalars:
                self.trainer.writer.write(step, scalars)

    def _evaluate(self, step: int) -> dict[str, float]:
        if self.evaluator is None or self.run_dir is None:
            return {}
        self.progress.log(f"evaluating frozen features after {step} steps")
        untrained = None if self.evaluator.baselines else self._untrained()
        result = self.evaluator.evaluate(untrained, self.trainer.plain_model.student)
        found = result[self.config.modality]
        found["step"] = step
        write_atomically(self.run_dir.eval_path, json.dumps(result, indent=2))
        linear = found["linear"]
        self.trainer.collapse.check_accuracy(step, linear, 2 * linear["standard_error"]["trained"])
        return {
            f"eval/{task}/{probe}": scores[probe]["trained"]
            for task, scores in found["tasks"].items()
            for probe in ("linear", "few_shot", "knn")
        }

    def _untrained(self) -> Backbone:
        """The encoder as it was before the first step."""
        with torch.random.fork_rng():
            torch.manual_seed(self.config.seed)
            untrained = build_backbone(self.modality, self.config)
        return untrained.to(self.trainer.accelerator.device)

    def show(self) -> None:
        """Print the table of the last evaluation."""
        result = self._last()
        if self.run_dir is not None and result:
            print(f"{render(result)}\n\nwritten to {self.run_dir.eval_path}", flush=True)

    def _last(self) -> dict[str, Any]:
        """The last evaluation; nothing on processes other than the main one."""
        if self.run_dir is None or not self.run_dir.eval_path.exists():
            return {}
        found: dict[str, Any] = json.loads(self.run_dir.eval_path.read_text(encoding="utf-8"))
        return found
