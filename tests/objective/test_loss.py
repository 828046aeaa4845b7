"""The loss against plain formulas."""

import math
from typing import Any

import pytest
import torch

from selfdistill.config import ObjectiveConfig
from selfdistill.objective.loss import class_loss, loss_factor, regression_loss

B, N, D = 2, 3, 16
WEIGHT = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])


def vectors(seed: int) -> torch.Tensor:
    return 3 * torch.randn(B, N, D, generator=torch.Generator().manual_seed(seed))


def token_loss(difference: list[float], beta: float) -> float:
    """Equation 3 of the paper, summed over the width; beta 0: squared error."""
    if beta == 0:
        return sum(d * d for d in difference)
    return sum(d * d / (2 * beta) if abs(d) < beta else abs(d) - beta / 2 for d in difference)


@pytest.mark.parametrize("beta", [0.0, 0.5, 2.0, 4.0])
def test_the_loss_is_the_sum_over_real_masked_tokens(beta: float) -> None:
    predictions, targets = vectors(0), vectors(1)
    found = regression_loss(
        predictions, targets, WEIGHT, ObjectiveConfig(loss_beta=beta, loss_scale=1.0)
    )
    real = (predictions - targets)[WEIGHT.bool()].double()
    assert len(real) == 4
    assert float(found) == pytest.approx(sum(token_loss(d.tolist(), beta) for d in real), rel=1e-5)


@pytest.mark.parametrize(("beta", "loss"), [(0.0, 9.25), (1.0, 2.625), (4.0, 1.15625)])
def test_a_loss_that_can_be_checked_by_hand(beta: float, loss: float) -> None:
    """One token of width 2, off by 0.5 and by 3."""
    targets, predictions = torch.zeros(1, 1, 2), torch.tensor([[[0.5, -3.0]]])
    objective = ObjectiveConfig(loss_beta=beta, loss_scale=1.0)
    assert float(regression_loss(predictions, targets, torch.ones(1, 1), objective)) == loss


@pytest.mark.parametrize(
    ("scale", "factor"), [("rsqrt_width", 1 / math.sqrt(D)), ("mean", 1 / D), (0.3, 0.3)]
)
def test_scales(scale: Any, factor: float) -> None:
    assert loss_factor(ObjectiveConfig(loss_scale=scale), D) == pytest.approx(factor)
    plain = regression_loss(vectors(0), vectors(1), WEIGHT, ObjectiveConfig(loss_scale=1.0))
    scaled = regression_loss(vectors(0), vectors(1), WEIGHT, ObjectiveConfig(loss_scale=scale))
    torch.testing.assert_close(scaled, plain * factor)


@pytest.mark.parametrize("beta", [0.0, 2.0])
def test_filled_up_places_have_no_gradient(beta: float) -> None:
    predictions = vectors(0).requires_grad_()
    regression_loss(predictions, vectors(1), WEIGHT, ObjectiveConfig(loss_beta=beta)).backward()
    assert predictions.grad is not None
    reached = predictions.grad.abs().sum(-1) > 0
    assert torch.equal(reached, WEIGHT.bool())


def test_no_masked_token_costs_nothing() -> None:
    empty = torch.zeros(B, 0, D)
    found = regression_loss(empty, empty, torch.zeros(B, 0), ObjectiveConfig())
    assert float(found) == 0


P, T, M = 2, 4, 3
LENGTHS = [4, 2]


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("beta", [0.0, 2.0])
def test_the_class_loss_is_of_the_last_prefix_token_and_the_mean(beta: float, padded: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    prefix = torch.randn(B * M, P, D, generator=generator)
    targets = torch.randn(B, T, D, generator=generator)
    lengths = LENGTHS if padded else [T, T]
    padding = torch.arange(T) >= torch.tensor(lengths)[:, None] if padded else None
    objective = ObjectiveConfig(cls_loss=0.25, loss_beta=beta, loss_scale=0.5)
    found = class_loss(prefix, targets, padding, objective)
    total = 0.0
    for row in range(B * M):
        sample = row // M
        mean = sum(targets[sample, t] for t in range(lengths[sample])) / lengths[sample]
        total += token_loss((prefix[row, -1] - mean).double().tolist(), beta)
    assert float(found) == pytest.approx(0.25 * 0.5 * total, rel=1e-5)
