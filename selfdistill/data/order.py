"""Which sample comes at which place of the training stream, as a pure function of the place.

Resuming, other numbers of processes or workers, and bad samples therefore never change what
anybody else sees.
"""

from collections.abc import Sequence
from itertools import accumulate

import numpy as np

# apart from each other and from every list of integers that seeds a generator elsewhere
SHARDS, SAMPLES, REPLACEMENTS, WINDOWS = range(4)


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

    def generator(self, *place: int) -> np.random.Generator:
        """The source of chance of one place in the run."""
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=place))

    def index(self, position: int) -> int:
        """The sample at ``position`` (0, 1, 2, ...) of the endless stream; cheap in sequence."""
        turn, place = self._turn(position)
        return int(self._samples_at(turn)[place])

    def indices(self, first: int, count: int) -> np.ndarray:
        """The samples at positions ``first`` to ``first + count - 1``, int64."""
        found = [np.empty(0, np.int64)]
        while count > 0:
            turn, place = self._turn(first)
            part = self._samples_at(turn)[place : place + count]
            found.append(part)
            first, count = first + len(part), count - len(part)
        return np.concatenate(found)

    def in_next_shard(self, position: int) -> int:
        """A sample of the shard that is read after the one at ``position``."""
        turn, place = self._turn(position)
        return self.index(position - place + self.sizes[int(self._shards[turn])])

    def _turn(self, position: int) -> tuple[int, int]:
        """Of the epoch that ``position`` is in, which shard's turn it is, and the place in it."""
        epoch, place = divmod(position, self.total)
        if self._epoch != epoch:
            self._shards = self.generator(SHARDS, epoch).permutation(len(self.sizes))
            self._ends = np.cumsum(np.array(self.sizes)[self._shards])
            self._epoch = epoch
        turn = int(np.searchsorted(self._ends, place, side="right"))
        return turn, place - int(self._ends[turn]) + self.sizes[int(self._shards[turn])]

    def _samples_at(self, turn: int) -> np.ndarray:
        """The samples of the shard whose turn it is, in their order."""
        shard = int(self._shards[turn])
        if self._shard != (self._epoch, shard):
            generator = self.generator(SAMPLES, self._epoch, shard)
            self._samples = self._first[shard] + generator.permutation(self.sizes[shard])
            self._shard = (self._epoch, shard)
        return self._samples

    def replacement(self, position: int, attempt: int) -> int:
        """Another sample for a bad one at ``position``, drawn uniformly; ``attempt`` 1, 2, ..."""
        return int(self.generator(REPLACEMENTS, position, attempt).integers(self.total))


def out_of_few_shards(sizes: Sequence[int], seed: int, shards: int, samples: int) -> np.ndarray:
    """Numbers of samples for a look at a set, int64 [up to ``samples`` of them], in random order.

    Args:
        sizes: samples of each shard.
        seed: of the choice.
        shards: most that have to be opened for it.
    """
    rng = np.random.default_rng(seed)
    starts = np.cumsum([0, *sizes])
    chosen = rng.permutation(len(sizes))[:shards]
    numbers = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in chosen.tolist()])
    return rng.permutation(numbers)[:samples]
