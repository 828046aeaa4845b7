"""Which steps are left out, and when a run goes back."""

import json
import math
from typing import Any

import pytest

from selfdistill.config import TrainConfig
from selfdistill.engine.step_guard import HISTORY, MIN_HISTORY, StepGuard

NAN, INF = math.nan, math.inf


def guard(**settings: Any) -> StepGuard:
    return StepGuard(
        TrainConfig(**{"max_left_out": 3, "max_rollbacks": 2, "max_loss_jump": 5, **settings})
    )


def used(losses: int = MIN_HISTORY, loss: float = 1.0) -> StepGuard:
    found = guard()
    for step in range(losses):
        assert not found.check(step, {"image": loss}, 1.0)
    return found


@pytest.mark.parametrize(
    ("losses", "norm", "fault"),
    [
        ({"image": NAN}, 1.0, "the loss is nan"),
        ({"image": -INF}, 1.0, "the loss is -inf"),
        ({"image": 1.0}, INF, "the gradient's norm is inf"),
        ({"image": 1.0, "text": INF}, 1.0, "the loss of text is inf"),
    ],
)
def test_what_is_not_finite(losses: dict[str, float], norm: float, fault: str) -> None:
    found = guard()
    assert found.check(4, losses, norm) == fault
    assert (found.in_a_row, found.total) == ([4], 1)


def test_a_jump() -> None:
    found = used()
    assert not found.check(50, {"image": 5.0}, 1.0)
    fault = found.check(51, {"image": 25.5}, 1.0)
    assert fault == (
        "the loss is 25.5, 5.1 times the largest of the 21 steps before (train.max_loss_jump)"
    )


def test_a_jump_of_one_modality_hides_behind_no_other() -> None:
    found = guard()
    for step in range(MIN_HISTORY):
        found.check(step, {"image": 0.1, "text": 9.0}, 1.0)
    assert "the loss of image is 0.6, 6.0 times" in found.check(
        99, {"image": 0.6, "text": 1.0}, 1.0
    )


def test_what_is_no_jump() -> None:
    assert not used(MIN_HISTORY - 1).check(50, {"image": 500.0}, 1.0)  # too little to compare with
    assert not used(loss=0.0).check(50, {"image": 1.0}, 1.0)
    found = used()
    found.config = TrainConfig(max_loss_jump=0)
    assert not found.check(50, {"image": 500.0}, 1.0)
    found = used(1, loss=4.0)  # a loss may fall and come back
    for step in range(HISTORY - 1):
        assert not found.check(step, {"image": 0.1}, 1.0)
    assert not found.check(500, {"image": 4.0}, 1.0)
    # the first one is forgotten by now
    for step in range(HISTORY):
        assert not found.check(step, {"image": 0.1}, 1.0)
    assert found.check(900, {"image": 4.0}, 1.0)


def test_a_jump_is_no_measure_for_the_next() -> None:
    found = used()
    for step in range(2 * HISTORY):
        assert found.check(step, {"image": 6.0}, 1.0)


def test_only_those_in_a_row_exhaust_it() -> None:
    found = used()
    for step, loss in enumerate([NAN, NAN, 1.0, NAN, NAN]):
        found.check(step, {"image": loss}, 1.0)
        assert not found.is_exhausted
    found.check(9, {"image": NAN}, 1.0)
    assert found.is_exhausted
    assert (found.in_a_row, found.total) == ([3, 4, 9], 5)


def fail(found: StepGuard, *steps: int) -> None:
    for step in steps:
        assert found.check(step, {"image": NAN}, 1.0)


def test_going_back() -> None:
    found = used()
    state = json.loads(json.dumps(found.state()))
    found.check(20, {"image": 2.0}, 1.0)
    fail(found, 23, 24, 25)
    assert found.may_go_back_to(20)
    found.go_back(20, state)
    assert (found.passed_over, found.in_a_row, found.total) == ([23, 24, 25], [], 3)
    # the losses are those of the checkpoint again
    assert found.state()["losses"] == state["losses"]
    fail(found, 22, 26, 27)
    assert found.may_go_back_to(20)
    found.go_back(20, state)
    assert found.passed_over == [22, 23, 24, 25, 26, 27]
    assert found.rollbacks == 2
    assert not found.may_go_back_to(20)
    assert found.may_go_back_to(40)


def test_another_checkpoint_is_another_chance() -> None:
    found = used()
    state = found.state()
    for step in (20, 20, 40, 20, 20):
        assert found.may_go_back_to(step)
        found.go_back(step, state)
    assert not found.may_go_back_to(20)


def test_a_resumed_run_knows_all_of_it() -> None:
    found = used()
    fail(found, 30, 31, 32)
    found.go_back(20, found.state())
    fail(found, 40, 41)
    again = guard()
    again.load_state(json.loads(json.dumps(found.state())))
    assert again.state() == found.state()
    assert (again.passed_over, again.in_a_row, again.rollbacks) == ([30, 31, 32], [40, 41], 1)
    fail(again, 42)
    assert again.is_exhausted
    assert not used().check(50, {"image": 4.9}, 1.0)
    again.in_a_row.clear()
    assert again.check(50, {"image": 5.1}, 1.0)
