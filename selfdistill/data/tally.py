"""What the indexes of shards tell without a sample being read."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from selfdistill.data.plain import label_of
from selfdistill.data.shards import ShardSet
from selfdistill.data.tarindex import LABEL


@dataclass(frozen=True)
class Tally:
    """What is in a set of shards.

    Attributes:
        members: number of those that are read, by extension, the most frequent first.
        size: bytes of all of them.
        others: some of the extensions that are not read.
        lengths: float32 [n], of the samples in the modality's unit; None: not all are known.
        is_here: whether all shards are on this machine.
    """

    members: Mapping[str, int]
    size: int
    others: list[str]
    lengths: np.ndarray | None
    is_here: bool


def tally(shards: ShardSet) -> Tally:
    """Count what the indexes name."""
    extensions = (*shards.extensions, LABEL)
    counts = np.zeros(len(extensions), np.int64)
    size, others = 0, set[str]()
    for index in shards.indexes:
        counts += np.bincount(index.members["extension"], minlength=len(extensions))
        size += int(index.members["size"].sum(dtype=np.int64))
        others |= set(index.others)
    found = sorted(zip(counts.tolist(), extensions, strict=True), reverse=True)
    lengths = shards.known_lengths()
    members = {extension: count for count, extension in found if count}
    return Tally(
        members,
        size,
        sorted(others)[:8],
        lengths if np.isfinite(lengths).all() else None,
        shards.is_here,
    )


def read_labels(shards: ShardSet, samples: Iterable[int]) -> Iterator[int | None]:
    """The classes of samples, cheapest in ascending order; nothing else of them is read."""
    for sample in samples:
        label = shards.read_label(sample)
        yield None if label is None else label_of({LABEL: label})
