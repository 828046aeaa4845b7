"""The evaluations of a run, during training and at its end: probes and pictures."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from selfdistill.config import PROBES, RunConfig
from selfdistill.data.loader import Source
from selfdistill.durable import write_atomically
from selfdistill.engine.metrics import Progress, by_modality
from selfdistill.engine.run_dir import RunDir
from selfdistill.engine.sharding import whole_student
from selfdistill.engine.sums import over_processes
from selfdistill.engine.together import Together
from selfdistill.engine.trainer import Trainer
from selfdistill.errors import DataBudgetError, errors_of
from selfdistill.modalities.backbone import Backbones, untrained_backbones
from selfdistill.pictures.run import Pictures
from selfdistill.probes.evaluate import Evaluator
from selfdistill.probes.features import Features, Share
from selfdistill.probes.table import render
from selfdistill.run_folder.layout import PICTURES

NONE = Features([], np.empty(0, dtype=np.int64))


class Evaluation:
    """The probes of a run and its pictures.

    Each process computes the features of its share of the labelled sets; the main one probes them
    and draws. The last result is kept in ``RUN/eval.json``, the last pictures in ``RUN/pictures``.

    Args:
        config: of the run.
        sources: of the training data, by modality.
        trainer: whose student is evaluated.
        run_dir: None on processes other than the main one.
        progress: the console.
    """

    def __init__(
        self,
        config: RunConfig,
        sources: Mapping[str, Source],
        trainer: Trainer,
        run_dir: RunDir | None,
        progress: Progress,
    ) -> None:
        self.config = config
        self.parts = config.parts()
        self.trainer = trainer
        self.run_dir = run_dir
        self.progress = progress
        self.together = Together(trainer.accelerator, trainer.stop)
        self.evaluators = {
            name: Evaluator(part, sources[name].pipeline)
            for name, part in self.parts.items()
            if part.eval.tasks
        }
        self.pictures = {} if run_dir is None else self._pictures(sources, run_dir)

    def __call__(self, step: int) -> dict[str, float] | None:
        """Evaluate after ``step`` steps.

        Returns:
            What is to be logged, on the main process; None: a signal put an end to it.
        """
        if not any(part.eval.tasks or part.eval.pictures for part in self.parts.values()):
            return {}
        trainer = self.trainer
        trained = whole_student(trainer.plain_model, self.config, trainer.accelerator)
        if self.evaluators:
            self.progress.log(f"evaluating frozen features after {step} steps")
        found = self.together.run(lambda: self._evaluate(step, trained))
        if found is None and self.evaluators:
            self.progress.log("the evaluation is broken off; it will be made when the run goes on")
            return None
        if found is None:
            self.progress.log("the pictures are left out; the same command draws them later")
            return {}
        result = found[0]
        self.together.complete(lambda: self._keep(step, result))
        return by_modality({name: _scalars(result.get(name, {})) for name in self.parts})

    def lacks(self, step: int) -> bool:
        """Whether the log or ``eval.json`` has not what labelled sets make of ``step``; where there
        are none, whether pictures of it are missing. What is there of a later step, which the run
        has lost, comes again."""
        mine = float(self.run_dir is not None and not self._has(step))
        return over_processes([mine], self.trainer.accelerator)[0] > 0

    def _has(self, step: int) -> bool:
        if not self.evaluators:  # else eval.json, which is written behind them, tells
            return not any(pictures.lacks(step) for pictures in self.pictures.values())
        last, writer = self._last(), self.trainer.writer
        found = [last.get(name, {}).get("step", -1) for name in self.evaluators]
        wanted = by_modality(
            {
                name: {_key(task, probe): 0.0 for task in part.eval.tasks for probe in PROBES}
                for name, part in self.parts.items()
            }
        )
        is_logged = writer is not None and wanted.keys() <= writer.written(step).keys()
        may_be_later = step < self.config.train.steps
        return is_logged and all(of == step or (may_be_later and of > step) for of in found)

    def check(self) -> None:
        """Refuse labelled sets that cannot be used, before any time is spent on training."""
        for name, evaluator in self.evaluators.items() if self.run_dir is not None else ():
            with errors_of(name, self.parts):
                evaluator.check()

    def _evaluate(self, step: int, trained: Backbones) -> dict[str, Any]:
        known = all(evaluator.baselines for evaluator in self.evaluators.values())
        known &= not any(pictures.needs_untrained for pictures in self.pictures.values())
        untrained = None
        if not known:
            untrained = untrained_backbones(self.config).to(self.trainer.accelerator.device)
        result: dict[str, Any] = {}
        for name, evaluator in self.evaluators.items():
            with errors_of(name, self.parts):
                with self.progress.once():
                    before = None if untrained is None else untrained[name]
                    evaluator.compare(before, self._collect)
                result |= evaluator.evaluate(trained[name], self._collect)
        for found in result.values():
            found["step"] = step
        for name, pictures in self.pictures.items():
            pictures(step, None if untrained is None else untrained[name], trained[name])
        return result

    def _collect(self, compute: Callable[[Share], Features]) -> Features | None:
        """See ``Collect``."""
        accelerator = self.trainer.accelerator
        share = Share(accelerator.process_index, accelerator.num_processes)
        trouble = None
        try:
            own = compute(share)
        except DataBudgetError as error:  # another share may have good samples
            own, trouble = NONE, error
        places = self.together.gather([own.numbers, own.labels, *own.layers])
        if not places:
            return None
        numbers, labels, *layers = (np.concatenate(parts) for parts in places)
        if trouble is not None and not len(numbers):
            raise trouble
        order = np.argsort(numbers)
        return Features([layer[order] for layer in layers], labels[order], numbers[order])

    def _pictures(self, sources: Mapping[str, Source], run_dir: RunDir) -> dict[str, Pictures]:
        several = len(self.parts) > 1
        return {
            name: Pictures(
                part,
                sources[name],
                self.evaluators.get(name),
                run_dir.path / PICTURES / (name if several else ""),
                self.trainer.writer,
                f"{PICTURES}/{name}/" if several else f"{PICTURES}/",
            )
            for name, part in self.parts.items()
            if part.eval.pictures
        }

    def _keep(self, step: int, result: Mapping[str, Any]) -> None:
        if self.run_dir is None or not result:
            return
        write_atomically(self.run_dir.eval_path, json.dumps(result, indent=2))
        for name, found in result.items():
            linear = found["linear"]
            margin = 2 * linear["standard_error"]["trained"]
            with errors_of(name, self.parts):
                self.trainer.collapse[name].check_accuracy(step, linear, margin)

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


def _key(task: str, probe: str) -> str:
    """The name that an accuracy has in the log."""
    return f"eval/{task}/{probe}"


def _scalars(found: Mapping[str, Any]) -> dict[str, float]:
    return {
        _key(task, probe): scores[probe]["trained"]
        for task, scores in found.get("tasks", {}).items()
        for probe in PROBES
    }
