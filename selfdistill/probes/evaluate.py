"""The evaluation of a run: every probe on the raw input, the untrained and the trained encoder."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from selfdistill.config import PROBES, EvalConfig, RunConfig, TaskConfig
from selfdistill.data.elsewhere.address import Access
from selfdistill.data.pipeline import InputPipeline
from selfdistill.data.shards import ShardSet, open_shards
from selfdistill.errors import UserError
from selfdistill.modalities.backbone import Backbone
from selfdistill.probes.classify import Score
from selfdistill.probes.features import (
    Collect,
    Features,
    baseline_features,
    collect_alone,
    encoder_features,
)
from selfdistill.probes.labels import Named, check_labels
from selfdistill.probes.panel import Panel
from selfdistill.probes.sets import labels_of
from selfdistill.probes.table import SOURCES

logger = logging.getLogger(__name__)

EMBEDDED = 1_000
"""Test samples whose features are kept."""


@dataclass(frozen=True)
class Embedded:
    """Samples by the features of one layer.

    Attributes:
        layer: which one.
        x: float32 [N, D].
        labels: int64 [N], ``UNLABELLED`` where a sample has none.
        numbers: int64 [N], which samples of their set they are.
    """

    layer: int
    x: np.ndarray
    labels: np.ndarray
    numbers: np.ndarray

    @classmethod
    def of(cls, features: Features, layer: int, seed: int) -> "Embedded":
        """At most ``EMBEDDED`` of them, by chance."""
        total = len(features.numbers)
        chosen = np.sort(np.random.default_rng(seed).permutation(total)[:EMBEDDED])
        x, labels, numbers = features.layers[layer], features.labels, features.numbers
        return cls(layer, x[chosen], labels[chosen], numbers[chosen])


@dataclass(frozen=True)
class _Task:
    train: ShardSet
    test: ShardSet


class Evaluator:
    """Runs the probes of one modality, for all tasks of its ``config.eval.tasks``.

    Nothing is opened before the first ``check``, ``compare`` or ``evaluate``. Features may be those
    of several processes, see ``Collect``: the main one probes them, the others only compute.

    Attributes:
        baselines: {task: {"raw" | "untrained": {probe: score}}}, no scores where features do not
            come together.
        embedded: {task: {"untrained" | "trained": test samples at the linear probe's best layer}},
            of the last evaluation.
    """

    def __init__(self, config: RunConfig, pipeline: InputPipeline) -> None:
        self.baselines: dict[str, dict[str, dict[str, Score]]] = {}
        self.embedded: dict[str, dict[str, Embedded]] = {}
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
            self._check(name, labels_of(task.train), labels_of(task.test))

    def compare(self, untrained: Backbone | None, collect: Collect = collect_alone) -> None:
        """Probe what is compared with and is not in ``baselines`` yet.

        Args:
            untrained: the encoder before training; None: the raw input only.

        Raises:
            UserError, HealthError: as ``evaluate``.
        """
        for name, task in ((name, self._task(name)) for name in self._config.tasks):
            found = self.baselines.setdefault(name, {})
            if "raw" not in found:
                found["raw"] = self._probe_raw(name, task, collect)
            if "untrained" not in found and untrained is not None:
                found["untrained"] = self._probe_encoder(name, "untrained", untrained, collect)

    def evaluate(self, trained: Backbone, collect: Collect = collect_alone) -> dict[str, Any]:
        """The table of accuracies, as it is written to eval.json; ``compare`` comes before it.

        Args:
            trained: the encoder to judge.

        Returns:
            {modality: {probe: table, ..., "task": the first one, "raw_input": what the features
            of the raw input are, "tasks": {name: {probe: table, ...}}}} with the probes "linear",
            "few_shot" and "knn", at the top those of the first task. A table has accuracies from
            0 to 1 for "raw", "untrained" (None: not evaluated) and "trained", the best "layer" of
            the trained encoder and "untrained_layer", "standard_error" and the 95 % "interval" of
            each source, and for few_shot "std", their deviation over the draws. A task has
            "classes", "train_samples" and "test_samples" besides. Empty where the features do not
            come together.

        Raises:
            UserError: there is no task, or a labelled set cannot be used.
            HealthError: an encoder's features are not finite.
        """
        if not self._config.tasks:
            raise UserError("eval.tasks: is empty; name a labelled set with its train and test")
        found = {
            name: self._probe_encoder(name, "trained", trained, collect)
            for name in self._config.tasks
        }
        if not all(found.values()):
            return {}
        tasks = {name: self._tables(name, scores) for name, scores in found.items()}
        first = next(iter(tasks))
        headline = {probe: tasks[first][probe] for probe in PROBES}
        raw_input = self._pipeline.baseline_name
        return {self._modality: {**headline, "task": first, "raw_input": raw_input, "tasks": tasks}}

    def _tables(self, name: str, trained: dict[str, Score]) -> dict[str, Any]:
        scores = {**self.baselines[name], "trained": trained}
        return {probe: _table(scores, probe) for probe in PROBES} | self._sizes[name]

    def _probe_raw(self, name: str, task: _Task, collect: Collect) -> dict[str, Score]:
        train, test = (
            collect(partial(baseline_features, shards, self._pipeline))
            for shards in (task.train, task.test)
        )
        if train is None or test is None:
            return {}
        for split, shards, found in (("train", task.train, train), ("test", task.test, test)):
            if bad := len(shards) - len(found.labels):
                logger.warning(
                    "eval.tasks.%s.%s: %d of %d samples are bad and left out; selfdistill inspect "
                    "says why",
                    *(name, split, bad, len(shards)),
                )
        self._check(name, train.labels, test.labels)
        self._sizes[name] = {
            "classes": len(np.unique(train.labels)),
            "train_samples": len(train.labels),
            "test_samples": len(test.labels),
        }
        return self._probe(train, test)

    def _probe_encoder(
        self, name: str, source: str, encoder: Backbone, collect: Collect
    ) -> dict[str, Score]:
        task, size = self._task(name), self._config.batch_size
        train, test = (
            collect(partial(encoder_features, encoder, shards, self._pipeline, size))
            for shards in (task.train, task.test)
        )
        if train is None or test is None:
            return {}
        found = self._probe(train, test)
        kept = Embedded.of(test, found["linear"].layer, self._seed)
        self.embedded.setdefault(name, {})[source] = kept
        return found

    def test_samples(self, name: str) -> ShardSet:
        """The test split of a task."""
        return self._task(name).test

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

    def _check(self, name: str, train: np.ndarray, test: np.ndarray) -> None:
        check_labels(Named.of_task(name), train, test, self._config.few_shot_labels)

    def _probe(self, train: Features, test: Features) -> dict[str, Score]:
        config = self._config
        neighbours = {"knn": config.neighbours}
        panel = Panel(self._seed, True, config.few_shot_labels, config.few_shot_draws, neighbours)
        # the matrices are small: more threads gain little on free cores, and lose tenfold where
        # they wait for cores that loader workers hold
        with threadpool_limits(limits=1):
            return panel(train, test)


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
        "interval": {source: score and [*score.interval] for source, score in found.items()},
    }
    if probe == "few_shot":
        table["std"] = {source: score and score.std for source, score in found.items()}
    return table
