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
    for index in shards._indexes:
        counts += np.bincount(index.members["extension"], minlength=len(extensions))
        size += int(index.members["size"].sum(dtype=np.int64))
        others |= set(index.others)
    found = sorted(zip(counts.tolist(), extensions, strict=True), reverse=True)
    known = [lengths for lengths in shards._lengths if lengths is not None]
    lengths = np.concatenate(known) if len(known) == len(shards._lengths) else None
    if lengths is not None and not np.isfinite(lengths).all():
        lengths = None
    members = {extension: count for count, extension in found if count}
    here = shards.is_here
    return Tally(members, size, sorted(others)[:8], lengths, here)


def read_labels(shards: ShardSet, samples: Iterable[int]) -> Iterator[int | None]:
    """The classes of samples, cheapest in ascending order; nothing else of them is read."""
    for sample in samples:
        number, place = shards._place(sample)
        places = shards._indexes[number].places(place)
        found = [(at, size) for e, at, size in places if e == len(shards.extensions)]
        data = shards._source(number).read_all(found)
        yield label_of({LABEL: data[0]} if data else {})
