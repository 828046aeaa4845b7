"""The samples of a picture, and their tokens by both encoders."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np

from selfdistill.data.order import out_of_few_shards
from selfdistill.data.pipeline import InputPipeline
from selfdistill.data.plain import Part, Samples, plain_examples
from selfdistill.data.shards import ShardSet
from selfdistill.modalities.backbone import Backbone
from selfdistill.probes.evaluate import EMBEDDED, Embedded
from selfdistill.probes.features import encoder_features, encoder_rows

TOKENS = 20_000
"""Of all samples of a picture together, by one encoder; one batch more at most."""
BATCH = 16
TRAINING_SHARDS = 2


@dataclass(frozen=True)
class Scene:
    """Samples of one set.

    Attributes:
        task: of the labelled set; empty: training data.
        samples: the set.
        untrained, trained: some of them, the same.
    """

    task: str
    samples: Samples
    untrained: Embedded
    trained: Embedded

    def origin(self, modality: str, step: int, depth: int) -> list[str]:
        """Which samples and encoders these are, in lines."""
        of = f"test samples of {self.task}" if self.task else "samples of the training data"
        why = "where the linear probe does best" if self.task else "their last"
        return [
            f"{modality}, {of}, after {step:,} steps.",
            f"Trained encoder at layer {self.trained.layer} of {depth}, untrained at layer "
            f"{self.untrained.layer}: {why}.",
        ]


def richest(scenes: Sequence[Scene]) -> int:
    """Which scene has the most classes, of equal ones the first: its samples are those whose tokens
    and neighbours are shown, because neighbours of one class in few are of one by chance."""
    return int(np.argmax([len(np.unique(scene.trained.labels)) for scene in scenes]))


def training_part(shards: ShardSet, seed: int) -> Part:
    """Some samples for training, out of few shards, by chance."""
    return Part(shards, out_of_few_shards(shards.sizes, seed, TRAINING_SHARDS, EMBEDDED))


def embedded(
    backbone: Backbone, samples: Samples, pipeline: InputPipeline, batch_size: int, seed: int
) -> Embedded:
    """Samples at the last layer."""
    features = encoder_features(backbone, samples, pipeline, batch_size)
    return Embedded.of(features, backbone.depth, seed)


def mixed(labels: np.ndarray, seed: int) -> np.ndarray:
    """Numbers of samples in random order, one of each class in turn."""
    order = np.random.default_rng(seed).permutation(len(labels))
    seen: dict[int, int] = {}
    turns = []
    for number in order.tolist():
        label = int(labels[number])
        turns.append(seen.setdefault(label, 0))
        seen[label] += 1
    return order[np.argsort(turns, kind="stable")]


def tokens_of(
    backbone: Backbone, samples: Samples, numbers: np.ndarray, pipeline: InputPipeline, layer: int
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Token features of samples until there are ``TOKENS``.

    Returns:
        Numbers of the samples, in order, and float16 [T, D] of each.
    """
    found: list[np.ndarray] = []
    kept: list[int] = []
    total = 0
    with closing(encoder_rows(backbone, Part(samples, numbers), pipeline, BATCH, True)) as batches:
        for rows in batches:
            assert rows.lengths is not None
            kept += [int(numbers[place]) for place in rows.numbers]
            found += np.split(rows.layers[layer], np.cumsum(rows.lengths)[:-1])
            total += sum(rows.lengths)
            if total >= TOKENS:
                break
    return np.array(kept, dtype=np.int64), found


def examples_of(
    samples: Samples, numbers: np.ndarray, pipeline: InputPipeline
) -> Sequence[tuple[str, np.ndarray, int | None]]:
    """Keys, examples and labels of samples that are good."""
    found = list(plain_examples(Part(samples, numbers), pipeline, lambda bad: None))
    assert len(found) == len(numbers)
    return found
