"""Which places of the training stream make up a step: a number of samples, or a length of them.

Both are pure functions of the step, so that a run goes on anywhere without a history, and both give
a step the same samples however many processes share it.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import ceil
from typing import NamedTuple

import numpy as np

from selfdistill.data.order import WINDOWS, SampleOrder
from selfdistill.errors import UserError

STEPS_PER_WINDOW = 64
"""Steps whose samples are sorted by length together. More pad less and mix less."""


class Share(NamedTuple):
    """What a micro-batch is made of; int64, equally long, never empty.

    Attributes:
        positions: in the training stream.
        samples: which are there.
    """

    positions: np.ndarray
    samples: np.ndarray


def data_step(step: int, passed_over: Sequence[int]) -> int:
    """The step of the data that a step of training has its samples from.

    Args:
        step: of training, from 0.
        passed_over: steps of the data that training does not take; ascending.
    """
    for gone in passed_over:
        if gone > step:
            break
        step += 1
    return step


class StepPlan(ABC):
    """The samples of each step, and their split into micro-batches."""

    @abstractmethod
    def share(self, step: int, part: int, parts: int) -> Share:
        """Of micro-batch ``part`` out of ``parts`` over all processes."""


class ByCount(StepPlan):
    """Every step has ``batch_size`` samples; ``parts`` divides it."""

    def __init__(self, order: SampleOrder, batch_size: int) -> None:
        self.order, self.batch_size = order, batch_size

    def share(self, step: int, part: int, parts: int) -> Share:
        size = self.batch_size // parts
        first = step * self.batch_size + part * size
        positions = np.arange(first, first + size, dtype=np.int64)
        return Share(positions, self.order.indices(first, size))


class ByLength(StepPlan):
    """Steps of samples of like length, which add up to ``batch_length`` on average.

    The stream is cut into windows of equally many samples. Those of a window are sorted by length
    and cut into equally many steps of equal length, which come in random order. So every sample has
    its turn once per epoch; only within a window do epochs and shards mix.

    Args:
        order: of the samples.
        lengths: float32 [n], of each sample after cropping; 0 where unknown.
        batch_length: of a step over all processes.
        parts: micro-batches of a step over all processes, each of which needs a sample.

    Raises:
        UserError: a step would have too few samples.
    """

    def __init__(
        self, order: SampleOrder, lengths: np.ndarray, batch_length: float, parts: int
    ) -> None:
        self.order, self.lengths = order, lengths
        mean, longest = float(lengths.mean(dtype=np.float64)), float(lengths.max())
        if longest <= 0:
            raise UserError("data.batch_length: no sample has a length; see what the shards hold")
        epoch = int(order.total * mean / batch_length)  # steps of a pass over the data
        self.steps = min(max(epoch, 1), STEPS_PER_WINDOW)
        self.size = round(self.steps * batch_length / mean)
        if batch_length < parts * longest:
            raise UserError(
                f"data.batch_length: {batch_length} does not hold one of the longest samples "
                f"({longest:.1f}) for each of the {parts} micro-batches of a step; use at least "
                f"{ceil(10 * parts * longest) / 10:.10g}"
            )
        # of a step; not ``parts``, or other numbers of processes would have other steps
        self._fewest = int(batch_length / longest)
        self._window = -1
        self._steps: list[Share] = []

    def share(self, step: int, part: int, parts: int) -> Share:
        window, place = divmod(step, self.steps)
        if window != self._window:
            self._steps, self._window = self._cut(window), window
        positions, samples = self._steps[place]
        return Share(np.array_split(positions, parts)[part], np.array_split(samples, parts)[part])

    def _cut(self, window: int) -> list[Share]:
        """Each step of a window, its shortest sample first."""
        first = window * self.size
        samples = self.order.indices(first, self.size)
        lengths = self.lengths[samples]
        by_length = np.argsort(lengths, kind="stable")
        ends = np.cumsum(lengths[by_length], dtype=np.float64)
        cuts = np.searchsorted(ends, ends[-1] * np.arange(1, self.steps) / self.steps)
        # however uneven they are, every micro-batch has a sample
        floor = self._fewest * np.arange(1, self.steps)
        cuts = np.maximum.accumulate(np.maximum(cuts, floor) - floor) + floor
        cuts = np.minimum(cuts, self.size - floor[::-1])
        pieces = np.split(by_length, cuts)
        turns = self.order.generator(WINDOWS, window).permutation(self.steps)
        return [Share(first + pieces[turn], samples[pieces[turn]]) for turn in turns]
