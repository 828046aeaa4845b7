"""What turns a sample's bytes into a batch; each modality has its own."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from math import inf
from typing import Any

import numpy as np

from selfdistill.types import Batch


class InputPipeline(ABC):
    """Bytes of a sample to a batch of tensors with masks; runs in the loader's workers.

    ``decode`` and ``augment`` raise ``BadSample`` for what cannot be used; that is also what has
    fewer than two tokens, one to see and one to predict. A sample that is too short or too long
    says so as "0.2 seconds, at least 0.5 ...", of which the ledger tells the range.
    """

    extensions: Sequence[str]
    """Members of a sample that can be decoded (lower case, no dot), the preferred one first."""

    longest: float = inf
    """Longer samples are cropped to this length, in the modality's unit."""

    baseline_name: str
    """What ``baseline`` gives, for the table of the probes."""

    @abstractmethod
    def decode(self, sample: Mapping[str, bytes]) -> Any:
        """The sample's raw value from its members {extension: bytes}."""

    @abstractmethod
    def augment(self, raw: Any, rng: np.random.Generator) -> np.ndarray:
        """One training example (random crop and the like)."""

    @abstractmethod
    def plain(self, raw: Any) -> np.ndarray:
        """One example for evaluation: as ``augment`` without chance."""

    def is_cropped(self, raw: Any) -> bool:
        """Whether ``plain`` leaves a part of the raw value out because it is too long."""
        return False

    @abstractmethod
    def collate(
        self, examples: Sequence[np.ndarray], mask_keys: np.ndarray | None, keys: Sequence[str] = ()
    ) -> Batch:
        """Stack, pad along the second axis of the batch, and draw masks.

        Args:
            examples: what ``augment`` or ``plain`` gave.
            mask_keys: uint64 [B], one per row, the only source of chance of that row's mask; None
                for a batch without masks.
            keys: the samples' names.
        """

    @abstractmethod
    def baseline(self, example: np.ndarray) -> np.ndarray:
        """Features of the raw input that the probes compare with, float32 [F]; F is the same for
        examples of all lengths."""


def training_example(pipeline: InputPipeline, raw: Any, seed: int, position: int) -> np.ndarray:
    """``augment`` with the chance of a place in the training stream of a run."""
    return pipeline.augment(raw, np.random.default_rng([seed, position, 1]))


def padded(examples: Sequence[np.ndarray], value: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Examples [L, ...] of several lengths as one array.

    Returns:
        [B, longest L, ...] with ``value`` behind each, of the examples' type; lengths, int64 [B].
    """
    lengths = np.array([len(example) for example in examples], dtype=np.int64)
    first = examples[0]
    inputs = np.full((len(examples), lengths.max(), *first.shape[1:]), value, dtype=first.dtype)
    for row, example in zip(inputs, examples, strict=True):
        row[: len(example)] = example
    return inputs, lengths
