"""When a run goes back."""

import json

from selfdistill.config import TrainConfig
from selfdistill.engine.step_guard import StepGuard


def guard() -> StepGuard:
    return StepGuard(TrainConfig(max_left_out=3, max_rollbacks=2))


def fail(found: StepGuard, *steps: int) -> None:
    for step in steps:
        found.note(step, taken=False)


def test_only_those_in_a_row_exhaust_it() -> None:
    found = guard()
    for step, taken in enumerate([False, False, True, False, False]):
        found.note(step, taken)
        assert not found.is_exhausted
    fail(found, 9)
    assert found.is_exhausted
    assert (found.in_a_row, found.total) == ([3, 4, 9], 5)


def test_going_back() -> None:
    found = guard()
    state = json.loads(json.dumps(found.state()))
    found.note(20, taken=True)
    fail(found, 23, 24, 25)
    assert found.may_go_back_to(20)
    found.go_back(20, state)
    assert (found.passed_over, found.in_a_row, found.total) == ([23, 24, 25], [], 3)
    fail(found, 22, 26, 27)
    assert found.may_go_back_to(20)
    found.go_back(20, state)
    assert found.passed_over == [22, 23, 24, 25, 26, 27]
    assert found.rollbacks == 2
    assert not found.may_go_back_to(20)
    assert found.may_go_back_to(40)


def test_another_checkpoint_is_another_chance() -> None:
    found = guard()
    state = found.state()
    for step in (20, 20, 40, 20, 20):
        assert found.may_go_back_to(step)
        found.go_back(step, state)
    assert not found.may_go_back_to(20)


def test_a_resumed_run_knows_all_of_it() -> None:
    found = guard()
    fail(found, 30, 31, 32)
    found.go_back(20, found.state())
    fail(found, 40, 41)
    again = guard()
    again.load_state(json.loads(json.dumps(found.state())))
    assert again.state() == found.state()
    assert (again.passed_over, again.in_a_row, again.rollbacks) == ([30, 31, 32], [40, 41], 1)
    fail(again, 42)
    assert again.is_exhausted
