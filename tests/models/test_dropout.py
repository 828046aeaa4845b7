"""Dropout against its definition."""

import pytest
import torch

from selfdistill.models.dropout import Dropout, keep_chance, kept


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.5, 0.95])
def test_each_place_is_kept_with_its_chance(rate: float) -> None:
    """Also by the place within the 64 bits that it is drawn from, and whatever its neighbour."""
    torch.manual_seed(0)
    keep = kept(torch.Size((2**16, 4)), rate).double()
    deviation = (rate * (1 - rate) / 2**16) ** 0.5
    assert keep_chance(rate) == pytest.approx(1 - rate, abs=2**-17)
    assert (keep.mean(0) - keep_chance(rate)).abs().max() < 5 * deviation
    together = torch.corrcoef(keep.T) - torch.eye(4)
    assert together.abs().max() < 5 / 2**8


def test_at_a_rate_of_next_to_one_some_are_kept() -> None:
    y = Dropout(0.999999)(torch.ones(2**20))
    assert y.isfinite().all()
    assert y.any()


@pytest.mark.parametrize("shape", [(), (1,), (3,), (5, 1, 3), (0, 4)])
def test_any_shape(shape: tuple[int, ...]) -> None:
    keep = kept(torch.Size(shape), 0.5)
    assert keep.shape == shape
    assert keep.dtype == torch.int8


def test_what_is_kept_grows_so_that_the_mean_stays() -> None:
    torch.manual_seed(0)
    x = torch.rand(500, 400, requires_grad=True)
    y = Dropout(0.3)(x)
    kept_ones = y != 0
    torch.testing.assert_close(y, x * kept_ones / keep_chance(0.3))
    torch.testing.assert_close(y.mean(), x.mean(), rtol=0.01, atol=0)
    y.sum().backward()
    torch.testing.assert_close(x.grad, kept_ones / keep_chance(0.3))


def test_it_draws_from_the_global_generator() -> None:
    x, drop = torch.ones(1000), Dropout(0.5)
    torch.manual_seed(3)
    first, second = drop(x), drop(x)
    torch.manual_seed(3)
    assert torch.equal(drop(x), first)
    assert not torch.equal(second, first)


@pytest.mark.parametrize(("rate", "training"), [(0.5, False), (0.0, True)])
def test_nothing_is_dropped_nor_drawn(rate: float, training: bool) -> None:
    drop, x = Dropout(rate).train(training), torch.ones(7)
    state = torch.get_rng_state()
    assert drop(x) is x
    assert torch.equal(torch.get_rng_state(), state)
