"""Which sample comes at which place of the training stream, as a pure function of the place.

Resuming, other numbers of processes or workers, and bad samples therefore never change what
anybody else sees.
"""

from collections.abc import Sequence
from itertools import accumulate

import numpy as np

# apart from each other and from every list of integers that seeds a generator elsewhere
SHARDS, SAMPLES, REPLACEMENTS = range(3)


class SampleOrder:
    """Every sample once per epoch; shards and the samples in a shard shuffled anew each time.

    Samples of one shard stay together, so that a shard is read once per epoch; shards should hold
    samples in random order.

    Args:
        sizes: samples of each shard.
        seed: not negative.
    """

    def __init__(self, sizes: Sequence[int], seed: int) -> None:
        self.sizes = list(sizes)
        self.seed = seed
        self.total = sum(self.sizes)
        self._first = np.array([0, *accumulate(self.sizes)])
        self._epoch = -1
        self._shard = (-1, -1)
        self._shards = self._ends = self._samples = np.empty(0, np.int64)

    def _generator(self, *place: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=place))

    def index(self, position: int) -> int:
        """The sample at ``position`` (0, 1, 2, ...) of the endless stream; cheap in sequence."""
        epoch, place = divmod(position, self.total)
        if self._epoch != epoch:
            self._shards = self._generator(SHARDS, epoch).permutation(len(self.sizes))
            self._ends = np.cumsum(np.array(self.sizes)[self._shards])
            self._epoch = epoch
        turn = int(np.searchsorted(self._ends, place, side="right"))
        shard = int(self._shards[turn])
        if self._shard != (epoch, shard):
            generator = self._generator(SAMPLES, epoch, shard)
            self._samples = generator.permutation(self.sizes[shard])
            self._shard = (epoch, shard)
        within = place - (int(self._ends[turn]) - self.sizes[shard])
        return int(self._first[shard] + self._samples[within])

    def replacement(self, position: int, attempt: int) -> int:
        """Another sample for a bad one at ``position``, drawn uniformly; ``attempt`` 1, 2, ..."""
        return int(self._generator(REPLACEMENTS, position, attempt).integers(self.total))
