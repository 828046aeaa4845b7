"""Keeps steps that would spoil the weights away from them.

In long runs the loss jumps or overflows now and then. One such step is left out and costs nothing.
Several in a row mean that the weights were spoilt before; what helps then is to go back some way
and to pass over the batches that follow (PaLM, arXiv 2204.02311, section 5.1).
"""

import math
from collections import deque
from collections.abc import Mapping
from typing import Any

from selfdistill.config import TrainConfig

HISTORY = 100
"""Steps whose losses a new one is measured by. By their largest, because a healthy loss may dip to
a tenth and come back within twenty steps, as that of the audio sample does."""
MIN_HISTORY = 20
"""Fewer are no measure."""


class StepGuard:
    """Judges each step by its loss and its gradient.

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
        self._losses: dict[str, deque[float]] = {}
        self._went_back_to = -1
        self._times = 0

    @property
    def is_exhausted(self) -> bool:
        """Whether as many steps in a row were left out as may be."""
        return len(self.in_a_row) >= self.config.max_left_out

    def check(self, data_step: int, losses: Mapping[str, float], grad_norm: float) -> str:
        """Why a step must be left out; empty: it may be taken.

        Args:
            data_step: the step of the data that it has its batches from.
            losses: of each modality.
            grad_norm: before clipping.
        """
        fault = self._fault(losses, grad_norm)
        if fault:
            self.in_a_row.append(data_step)
            self.total += 1
            return fault
        self.in_a_row.clear()
        for name, loss in losses.items():
            self._losses.setdefault(name, deque(maxlen=HISTORY)).append(loss)
        return ""

    def _fault(self, losses: Mapping[str, float], grad_norm: float) -> str:
        for name, loss in losses.items():
            whose = f" of {name}" if len(losses) > 1 else ""
            if not math.isfinite(loss):
                return f"the loss{whose} is {loss}"
            before = self._losses.get(name, ())
            if self.config.max_loss_jump and len(before) >= MIN_HISTORY:
                largest = max(before)
                if loss > self.config.max_loss_jump * largest > 0:
                    return (
                        f"the loss{whose} is {loss:.4g}, {loss / largest:.1f} times the largest of "
                        f"the {len(before)} steps before (train.max_loss_jump)"
                    )
        return "" if math.isfinite(grad_norm) else f"the gradient's norm is {grad_norm}"

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
            "losses": {name: list(losses) for name, losses in self._losses.items()},
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.total, self.rollbacks = int(state["total"]), int(state["rollbacks"])
        self.in_a_row = list(state["in_a_row"])
        self.passed_over = list(state["passed_over"])
        self._losses = {
            name: deque(losses, maxlen=HISTORY) for name, losses in state["losses"].items()
        }
