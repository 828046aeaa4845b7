"""Which sample comes into which shard."""

from dataclasses import dataclass

import numpy as np

from selfdistill.masking import row_keys
from selfdistill.packing.tarwriter import planned_size


@dataclass(frozen=True)
class Shape:
    """Of the shards.

    Attributes:
        split: what their names begin with.
        shard_size: bytes of each, about.
        min_shards: so many at least.
    """

    split: str
    shard_size: int
    min_shards: int


def assign(sizes: np.ndarray, seed: int, shape: Shape) -> list[np.ndarray]:
    """Samples to shards of about equal size, in an order that the seed decides.

    A reader shuffles shards and the samples in one shard only, so neighbours in the input must not
    be neighbours here.

    Args:
        sizes: int [n], bytes of each sample's members, n at least 1.
        seed: of the order.
        shape: a sample larger than a shard has one of its own, and there are never more shards
            than samples.

    Returns:
        Per shard its samples, int64 and never empty.
    """
    order = np.argsort(row_keys(seed, np.arange(len(sizes))), kind="stable")
    planned = planned_size(sizes[order].astype(np.int64))
    ends = np.cumsum(planned)
    least = min(shape.min_shards, len(sizes))
    count = max(-(-int(ends[-1]) // shape.shard_size), least)
    shard = ((ends - planned / 2) * (count / ends[-1])).astype(np.int64).clip(0, count - 1)
    cuts = np.flatnonzero(np.diff(shard)) + 1
    if len(cuts) + 1 < least:  # samples of very different sizes
        return np.array_split(order, least)
    return np.split(order, cuts)
