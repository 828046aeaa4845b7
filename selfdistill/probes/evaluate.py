"""The evaluation of a run: every probe on the raw input, the untrained and the trained encoder."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from selfdistill.config import EvalConfig, RunConfig, TaskConfig
from selfdistill.data.elsewhere.address import Access
from selfdistill.data.pipeline import InputPipeline
from selfdistill.data.shards import ShardSet, open_shards
from selfdistill.data.tarindex import LABEL
from selfdistill.errors import UserError
from selfdistill.modalities.backbone import Backbone
from selfdistill.probes.classify import Probes, Score
from selfdistill.probes.features import (
    UNLABELLED,
    Features,
    baseline_features,
    encoder_features,
)

PROBES = ("linear", "few_shot", "knn")
SOURCES = ("raw", "untrained", "trained")


@dataclass(frozen=True)
class _Task:
    train: ShardSet
    test: ShardSet


class Evaluator:
    """Runs the probes of one modality, for all tasks of its ``config.eval.tasks``.

    Nothing is opened before the first ``check`` or ``evaluate``. The raw input is probed once, the
    untrained encoder the first time it is given; both are kept in ``baselines``.

    Attributes:
        baselines: {task: {"raw" | "untrained": {probe: score}}}.
    """

    def __init__(self, config: RunConfig, pipeline: InputPipeline) -> None:
        self.baselines: dict[str, dict[str, dict[str, Score]]] = {}
        (self._modality,) = config.parts()
        self._config: EvalConfig = config.eval
        self._access = Access.of(config.data)
        self._seed = config.seed
        self._pipeline = pipeline
        self._tasks: dict[str, _Task] = {}
        self._sizes: dict[str, dict[str, int]] = {}

    def check(self) -> None:
        """Open all labelled sets and look at every label; no sample is decoded.

        Raises:
            UserError: a labelled set cannot be used.
        """
        for name in self._config.tasks:
            task = self._task(name)
            train, test = _labels(task.train), _labels(task.test)
            check_labels(name, train, test, self._config.few_shot_labels)

    def evaluate(self, untrained: Backbone | None, trained: Backbone) -> dict[str, Any]:
        """The table of accuracies, as it is written to eval.json.

        Args:
            untrained: the encoder before training; None where it is in ``baselines`` already, or
                is not to be compared with.
            trained: the encoder to judge.

        Returns:
            {modality: {probe: table, ..., "task": the first one, "raw_input": what the features
            of the raw input are, "tasks": {name: {probe: table, ...}}}} with the probes "linear",
            "few_shot" and "knn", at the top those of the first task. A table has accuracies from
            0 to 1 for "raw", "untrained" (None: not evaluated) and "trained", the best "layer" of
            the trained encoder and "untrained_layer", "standard_error" of each source, and for
            few_shot "std", their deviation over the draws. A task has "classes", "train_samples"
            and "test_samples" besides.

        Raises:
            UserError: there is no task, or a labelled set cannot be used.
            HealthError: an encoder's features are not finite.
        """
        if not self._config.tasks:
            raise UserError("eval.tasks: is empty; name a labelled set with its train and test")
        tasks = {name: self._evaluate_task(name, untrained, trained) for name in self._config.tasks}
        first = next(iter(tasks))
        headline = {probe: tasks[first][probe] for probe in PROBES}
        raw_input = self._pipeline.baseline_name
        found = {**headline, "task": first, "raw_input": raw_input, "tasks": tasks}
        return {self._modality: found}

    def _evaluate_task(
        self, name: str, untrained: Backbone | None, trained: Backbone
    ) -> dict[str, Any]:
        found = self.baselines.setdefault(name, {})
        task = self._task(name)
        if "raw" not in found:
            train, test = (
                baseline_features(shards, self._pipeline) for shards in (task.train, task.test)
            )
            check_labels(name, train.labels, test.labels, self._config.few_shot_labels)
            self._sizes[name] = {
                "classes": len(np.unique(train.labels)),
                "train_samples": len(train.labels),
                "test_samples": len(test.labels),
            }
            found["raw"] = self._probe(train, test)
        if "untrained" not in found and untrained is not None:
            found["untrained"] = self._probe(*self._features(task, untrained))
        scores = {**found, "trained": self._probe(*self._features(task, trained))}
        return {probe: _table(scores, probe) for probe in PROBES} | self._sizes[name]

    def _task(self, name: str) -> _Task:
        if name not in self._tasks:
            shards = self._config.tasks[name]
            self._tasks[name] = _Task(
                self._open(shards, name, "train"), self._open(shards, name, "test")
            )
        return self._tasks[name]

    def _open(self, task: TaskConfig, name: str, split: str) -> ShardSet:
        key = f"eval.tasks.{name}.{split}"
        return open_shards(getattr(task, split), self._pipeline.extensions, self._access, key)

    def _features(self, task: _Task, encoder: Backbone) -> tuple[Features, Features]:
        batch_size = self._config.batch_size
        return (
            encoder_features(encoder, task.train, self._pipeline, batch_size),
            encoder_features(encoder, task.test, self._pipeline, batch_size),
        )

    def _probe(self, train: Features, test: Features) -> dict[str, Score]:
        config = self._config
        # the matrices are small: more threads gain little on free cores, and lose tenfold where
        # they wait for cores that loader workers hold
        with threadpool_limits(limits=1):
            probes = Probes(train, test, self._seed)
            return {
                "linear": probes.linear(),
                "few_shot": probes.few_shot(config.few_shot_labels, config.few_shot_draws),
                "knn": probes.knn(config.neighbours),
            }


def _labels(shards: ShardSet) -> np.ndarray:
    found = np.full(len(shards), UNLABELLED, dtype=np.int64)
    for i in range(len(shards)):
        with suppress(KeyError, ValueError):
            found[i] = int(shards.read(i)[1][LABEL])
    return found


def check_labels(name: str, train: np.ndarray, test: np.ndarray, few_shot_labels: int) -> None:
    """Refuse labels (int64, ``UNLABELLED`` where there is none) that the probes cannot work with.

    Raises:
        UserError: it names eval.tasks.``name`` and what to do.
    """
    for split, labels in (("train", train), ("test", test)):
        missing = int((labels == UNLABELLED).sum())
        if missing:
            raise UserError(
                f"eval.tasks.{name}.{split}: {missing} of {len(labels)} samples have no label; "
                "give every sample a .cls member that holds its class as an integer from 0"
            )
    classes, counts = np.unique(train, return_counts=True)
    if len(classes) < 2:
        raise UserError(
            f"eval.tasks.{name}.train: all samples are of class {classes[0]}; "
            "the probes need two classes or more"
        )
    for split, lacking in (
        ("test", np.setdiff1d(classes, test)),
        ("train", np.setdiff1d(test, classes)),
    ):
        if len(lacking):
            raise UserError(
                f"eval.tasks.{name}.{split}: has no sample of class {_listed(lacking)}, the other "
                "split has; take both splits from the same classes"
            )
    needed = 2 * few_shot_labels  # so many stay after the validation part is taken off
    scarce = counts < needed
    if scarce.any():
        raise UserError(
            f"eval.tasks.{name}.train: class {_listed(classes[scarce])} has {counts[scarce].min()} "
            f"samples at least, eval.few_shot_labels={few_shot_labels} needs {needed} of each "
            "class; add samples, or lower eval.few_shot_labels"
        )


def _listed(classes: np.ndarray) -> str:
    shown = ", ".join(str(c) for c in classes[:5])
    return shown + (f" and {len(classes) - 5} more" if len(classes) > 5 else "")


def _table(scores: Mapping[str, Mapping[str, Score]], probe: str) -> dict[str, Any]:
    found = {source: scores[source][probe] if source in scores else None for source in SOURCES}
    accuracy = {source: score and score.accuracy for source, score in found.items()}
    trained, untrained = found["trained"], found["untrained"]
    table: dict[str, Any] = {
        **accuracy,
        "layer": trained and trained.layer,
        "untrained_layer": untrained and untrained.layer,
        "standard_error": {
            source: score and score.standard_error for source, score in found.items()
        },
    }
    if probe == "few_shot":
        table["std"] = {source: score and score.std for source, score in found.items()}
    return table
