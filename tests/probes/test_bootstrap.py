import numpy as np
import pytest

from selfdistill.probes.bootstrap import DRAWS, mean_interval, ratio_interval, standard_error

CASES, SAMPLES = 500, 400


def test_the_interval_covers_the_truth_in_95_of_100_cases() -> None:
    rng = np.random.default_rng(0)
    truths = rng.uniform(0.2, 0.9, CASES)
    inside = 0
    for case, truth in enumerate(truths):
        low, high = mean_interval(rng.random(SAMPLES) < truth, seed=case)
        inside += low <= truth <= high
    assert inside / CASES == pytest.approx(0.95, abs=0.02)


def test_the_interval_of_a_ratio_covers_the_truth() -> None:
    rng = np.random.default_rng(1)
    lengths = rng.integers(5, 40, (CASES, 150))
    errors = rng.binomial(lengths, 0.3)
    intervals = (ratio_interval(e, n, seed=0) for e, n in zip(errors, lengths, strict=True))
    inside = sum(low <= 0.3 <= high for low, high in intervals)
    assert inside / CASES == pytest.approx(0.95, abs=0.02)


def test_drawing_by_value_is_drawing_samples() -> None:
    values = np.random.default_rng(2).choice([0.0, 0.2, 0.6, 1.0], 300)
    rng = np.random.default_rng(3)
    means = [values[rng.integers(300, size=300)].mean() for _ in range(20 * DRAWS)]
    expected = np.percentile(means, [2.5, 97.5])
    found = np.mean([mean_interval(values, seed) for seed in range(20)], axis=0)
    np.testing.assert_allclose(found, expected, atol=0.002)


def test_the_seed_decides_alone() -> None:
    right = np.arange(100) % 3 == 0
    assert mean_interval(right, 1) == mean_interval(right, 1)
    assert mean_interval(right, 1) != mean_interval(right, 2)
    assert mean_interval(np.ones(10), 0) == (1.0, 1.0)


def test_the_standard_error_is_the_deviation_over_test_sets() -> None:
    """Inputs of 8 tokens, which are told right together: they are worth fewer than their number."""
    rng = np.random.default_rng(4)
    inputs, groups = 200, np.repeat(np.arange(200), 8)
    found = []
    for _ in range(2000):
        shares = np.repeat(rng.beta(1.2, 0.8, inputs), 8)
        right = (rng.random(len(shares)) < shares).astype(float)
        found.append((right.mean(), standard_error(right, groups), standard_error(right)))
    deviation = np.std([mean for mean, _, _ in found])
    assert np.mean([error for _, error, _ in found]) == pytest.approx(deviation, rel=0.05)
    assert np.mean([error for _, _, error in found]) < 0.6 * deviation
