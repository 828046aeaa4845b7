"""Keeps account of the steps that were left out, and of the times that the run went back.

In long runs the loss jumps or overflows now and then. One such step is left out and costs nothing.
Several in a row mean that the weights were spoilt before; what helps then is to go back some way
and to pass over the batches that follow (PaLM, arXiv 2204.02311, section 5.1).
"""

from collections.abc import Mapping
from typing import Any

from selfdistill.config import TrainConfig


class StepGuard:
    """Knows when it is time to go back.

    Attributes:
        total: steps left out so far.
        in_a_row: the steps of the data that were left out last, one after the other.
        passed_over: the steps of the data that the run does not take any more; ascending.
        rollbacks: how often the run went back.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.total = 0
        self.in_a_row: list[int] = []
        self.passed_over: list[int] = []
        self.rollbacks = 0
        self._went_back_to = -1
        self._times = 0

    @property
    def is_exhausted(self) -> bool:
        """Whether as many steps in a row were left out as may be."""
        return len(self.in_a_row) >= self.config.max_left_out

    def note(self, data_step: int, taken: bool) -> None:
        """Note what became of a step.

        Args:
            data_step: the step of the data that it has its batches from.
            taken: whether it was.
        """
        if taken:
            self.in_a_row.clear()
        else:
            self.in_a_row.append(data_step)
            self.total += 1

    def may_go_back_to(self, step: int) -> bool:
        """Whether the run has not gone back to this step too often already."""
        times = self._times if step == self._went_back_to else 0
        return times < self.config.max_rollbacks

    def go_back(self, step: int, state: Mapping[str, Any]) -> None:
        """Take the state of ``step``, and pass over what was left out since.

        What was passed over before, and how often, is no part of that state: else a run that went
        back would do the same once more.
        """
        self._times = self._times + 1 if step == self._went_back_to else 1
        self._went_back_to = step
        gone = sorted({*self.passed_over, *self.in_a_row})
        total, rollbacks = self.total, self.rollbacks + 1
        self.load_state(state)
        self.passed_over, self.total, self.rollbacks, self.in_a_row = gone, total, rollbacks, []

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps; plain JSON values."""
        return {
            "total": self.total,
            "in_a_row": list(self.in_a_row),
            "passed_over": list(self.passed_over),
            "rollbacks": self.rollbacks,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.total, self.rollbacks = int(state["total"]), int(state["rollbacks"])
        self.in_a_row = list(state["in_a_row"])
        self.passed_over = list(state["passed_over"])
