"""Which steps are left out."""

import json
import math
from collections.abc import Mapping

import pytest
import torch

from selfdistill.engine.step_judge import HISTORY, MIN_HISTORY, StepJudge

NAN, INF = math.nan, math.inf


def judge(*names: str, max_jump: float = 5.0) -> StepJudge:
    return StepJudge(names or ["image"], max_jump, torch.device("cpu"))


def check(found: StepJudge, losses: Mapping[str, float], norm: float = 1.0) -> str:
    """The fault, after both ways of telling whether the step is taken were seen to agree."""
    assert list(losses) == found.names
    verdict = found.judge(torch.tensor([*losses.values()], dtype=torch.float64), torch.tensor(norm))
    fault = found.fault(verdict.numbers.tolist())
    assert bool(verdict.taken) == (not fault)
    return fault


def used(losses: int = MIN_HISTORY, loss: float = 1.0) -> StepJudge:
    found = judge()
    for _ in range(losses):
        assert not check(found, {"image": loss})
    return found


@pytest.mark.parametrize(
    ("losses", "norm", "fault"),
    [
        ({"image": NAN}, 1.0, "the loss is nan"),
        ({"image": -INF}, 1.0, "the loss is -inf"),
        ({"image": 1.0}, INF, "the gradient's norm is inf"),
        ({"image": 1.0}, NAN, "the gradient's norm is nan"),
        ({"image": 1.0, "text": INF}, 1.0, "the loss of text is inf"),
    ],
)
def test_what_is_not_finite(losses: dict[str, float], norm: float, fault: str) -> None:
    assert check(judge(*losses), losses, norm) == fault


def test_a_jump() -> None:
    found = used()
    assert not check(found, {"image": 5.0})
    fault = check(found, {"image": 25.5})
    assert fault == (
        "the loss is 25.5, 5.1 times the largest of the 21 steps before (train.max_loss_jump)"
    )


def test_a_jump_of_one_modality_hides_behind_no_other() -> None:
    found = judge("image", "text")
    for _ in range(MIN_HISTORY):
        assert not check(found, {"image": 0.1, "text": 9.0})
    assert "the loss of image is 0.6, 6.0 times" in check(found, {"image": 0.6, "text": 1.0})


def test_what_is_no_jump() -> None:
    assert not check(used(MIN_HISTORY - 1), {"image": 500.0})  # too little to compare with
    assert not check(used(loss=0.0), {"image": 1.0})
    found = used()
    found.max_jump = 0
    assert not check(found, {"image": 500.0})
    found = used(1, loss=4.0)  # a loss may fall and come back
    for _ in range(HISTORY - 1):
        assert not check(found, {"image": 0.1})
    assert not check(found, {"image": 4.0})
    # the first one is forgotten by now
    for _ in range(HISTORY):
        assert not check(found, {"image": 0.1})
    assert check(found, {"image": 4.0})


def test_a_jump_is_no_measure_for_the_next() -> None:
    found = used()
    for _ in range(2 * HISTORY):
        assert check(found, {"image": 6.0})


def test_a_resumed_run_knows_the_losses() -> None:
    found = used()
    again = judge()
    again.load_state(json.loads(json.dumps(found.state())))
    assert again.state() == found.state() == {"image": [1.0] * MIN_HISTORY}
    assert not check(again, {"image": 4.9})
    assert check(again, {"image": 24.6})
