"""Moments: what the health guard reads equals what is computed from the vectors themselves."""

import math

import numpy as np
import pytest
import torch

from selfdistill.objective.moments import (
    Moments,
    effective_rank,
    spectral_slope,
    variance_over_samples,
)

D = 6


def vectors(seed: int, rows: int = 4, tokens: int = 50) -> torch.Tensor:
    """Correlated and off centre."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(D, D, generator=torch.Generator().manual_seed(9))
    return torch.randn(rows, tokens, D, generator=generator) @ mix + 0.5


def direct_rank(x: torch.Tensor) -> float:
    """RankMe (arXiv 2210.02885) of centred rows [N, D], from singular values."""
    values = torch.linalg.svdvals((x - x.mean(0)).double())
    shares = values / values.sum() + 1e-7
    return float(torch.exp(-(shares * shares.log()).sum()))


def weights(tokens: int = 50) -> torch.Tensor:
    return (torch.arange(tokens) < torch.tensor([50, 31, 7, 1])[:, None]).float()


def test_figures_equal_a_direct_computation() -> None:
    x, weight = vectors(0), weights()
    real = x[weight.bool()]
    found = Moments.of(x, weight)
    assert float(found.size) == len(real) == 89
    expected = (real.var(0) + 1e-6).sqrt().mean()
    assert found.std() == pytest.approx(float(expected), rel=1e-5)
    assert effective_rank(found.spectrum()) == pytest.approx(direct_rank(real), rel=1e-5)
    torch.testing.assert_close(found.covariance().float(), torch.cov(real.T))


def added(one: Moments, other: Moments) -> Moments:
    return Moments(*(a + b for a, b in zip(one, other, strict=True)))


def test_they_add_up_over_batches_and_processes() -> None:
    x, weight = vectors(0), weights()
    whole = Moments.of(x, weight)
    parts = added(Moments.of(x[:1], weight[:1]), Moments.of(x[1:], weight[1:]))
    for a, b in zip(parts, whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_a_deviation_far_below_the_mean_is_not_lost() -> None:
    x, ones = vectors(0).double(), torch.ones(4, 50)
    shifted = (1e-3 * x + 7).float()
    wanted = torch.cov(shifted.double().flatten(0, 1).T)
    parts = added(Moments.of(shifted[:2], ones[:2]), Moments.of(shifted[2:], ones[2:]))
    for found in (Moments.of(shifted, ones), parts):
        torch.testing.assert_close(found.covariance(), wanted, rtol=1e-5, atol=1e-11)


def test_collapse_shows() -> None:
    ones = torch.ones(4, 50)
    constant = Moments.of(torch.full((4, 50, D), 0.7), ones)
    assert constant.std() == pytest.approx(1e-3, rel=0.05)  # the root of fairseq's 1e-6
    line = vectors(0)[..., :1].expand(-1, -1, D)
    assert effective_rank(Moments.of(line, ones).spectrum()) == pytest.approx(1, abs=0.01)


def test_no_vectors_at_all_are_finite() -> None:
    empty = Moments.of(torch.zeros(2, 0, D), torch.zeros(2, 0))
    assert empty.std() == pytest.approx(1e-3)
    assert effective_rank(empty.spectrum()) == pytest.approx(1, abs=0.01)


def test_no_graph_is_kept_and_autocast_does_not_round() -> None:
    x = vectors(0).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = Moments.of(x, weights())
    assert not found.outer.requires_grad
    assert found.outer.dtype == torch.float64
    torch.testing.assert_close(found.outer, Moments.of(x, weights()).outer, rtol=0, atol=0)


def test_slope_equals_a_direct_computation() -> None:
    values = np.linalg.eigvalsh(np.cov(vectors(0).double().flatten(0, 1).numpy().T))[::-1]
    place = np.arange(1, D + 1)
    wanted = -np.polyfit(np.log(place), np.log(values), 1, w=place**-0.5)[0]
    found = Moments.of(vectors(0), torch.ones(4, 50))
    assert spectral_slope(found.spectrum()) == pytest.approx(wanted, rel=1e-5)


def test_slope_of_a_power_law() -> None:
    law = torch.arange(1, 65, dtype=torch.float64) ** -1.3
    assert spectral_slope(law) == pytest.approx(1.3)
    # rounding errors behind the last real direction do not count
    noisy = torch.cat([law, torch.full((64,), 1e-12, dtype=torch.float64)])
    assert spectral_slope(noisy) == pytest.approx(1.3)
    assert math.isnan(spectral_slope(torch.tensor([1.0, 0.5, 0.0, 0.0])))
    assert math.isnan(spectral_slope(torch.zeros(8)))


def test_cosine() -> None:
    x = torch.nn.functional.normalize(vectors(0), dim=-1)
    flat = x.double().flatten(0, 1)
    wanted = float((flat @ flat.T).mean())
    assert Moments.of(x, torch.ones(4, 50)).cosine() == pytest.approx(wanted, rel=1e-5)
    same = torch.ones(4, 50, D)
    assert Moments.of(same, torch.ones(4, 50)).cosine() == pytest.approx(1)


def test_variance_over_samples() -> None:
    x = vectors(0)
    padding = torch.arange(50) >= torch.tensor([50, 31, 7, 1])[:, None]
    assert float(variance_over_samples(x, None)) == pytest.approx(float(x.var(0).mean()))
    places = [x[: int((~padding[:, t]).sum()), t].var(0).mean() for t in range(31)]
    found = variance_over_samples(x.masked_fill(padding[..., None], 1e3), padding)
    assert float(found) == pytest.approx(float(torch.stack(places).mean()), rel=1e-5)
    # what depends on the place only
    assert float(variance_over_samples(x[:1].expand(4, -1, -1), None)) == pytest.approx(0, abs=1e-9)
    assert math.isnan(variance_over_samples(x[:1], None))
