"""Random numbers, keys of several masks, and choices without replacement."""

import numpy as np
import pytest
from recorded import keys

from selfdistill.masking import chance, clone_keys, row_keys, span_masks, uniform


def test_random_numbers() -> None:
    # fixed for good: other numbers would give a resumed run other masks
    assert row_keys(0, np.array([0, 1])).tolist() == [0x48218226FF3CD4BF, 0xA706DD2F4D197E6F]
    assert uniform(keys(1), 1)[0, 0] == 0.731109900151883
    numbers = uniform(keys(300), 200)
    np.testing.assert_array_equal(numbers[:, :50], uniform(keys(300), 50))
    others = [uniform(keys(300), 200, stream=1), uniform(row_keys(18, np.arange(300)), 200)]
    shifted = [numbers[:-1, :], numbers[1:, :]], [numbers[:, :-1], numbers[:, 1:]]
    for a, b in [*((numbers, other) for other in others), *shifted]:
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 4 / 60_000**0.5
    counts = np.histogram(numbers, bins=20, range=(0, 1))[0]
    assert ((counts - 3000) ** 2 / 3000).sum() < 44  # chi-squared, 19 degrees: p = 0.001
    assert len(np.unique(row_keys(-1, np.arange(-5000, 5000)))) == 10_000


def test_the_first_mask_of_a_sample_has_its_own_key() -> None:
    # fixed for good, as above
    fixed = [0x48218226FF3CD4BF, 0xBFBE3C0E9DD5CC2A, 0xEF28FB48758C4738]
    assert clone_keys(row_keys(0, np.array([0])), 3).tolist() == fixed
    cloned = clone_keys(keys(5), 16)
    assert cloned.shape == (80,)
    assert cloned.dtype == np.uint64
    np.testing.assert_array_equal(cloned[::16], keys(5))
    np.testing.assert_array_equal(clone_keys(keys(5), 1), keys(5))
    fewer = clone_keys(keys(5), 3).reshape(5, 3)
    np.testing.assert_array_equal(cloned.reshape(5, 16)[:, :3], fewer)
    np.testing.assert_array_equal(clone_keys(keys(1, 4), 16), cloned[64:])


def test_keys_of_one_sample_are_independent() -> None:
    assert len(np.unique(clone_keys(keys(5000), 16))) == 80_000
    numbers = uniform(clone_keys(keys(2000), 8), 20).reshape(2000, 8, 20)
    numbers = np.concatenate([numbers, uniform(keys(2000), 20, stream=1)[:, None]], axis=1)
    correlations = np.corrcoef(numbers.swapaxes(0, 1).reshape(9, -1))
    assert np.abs(correlations - np.eye(9)).max() < 4.5 / 40_000**0.5
    neighbours = np.corrcoef(numbers[:-1].ravel(), numbers[1:].ravel())[0, 1]
    assert abs(neighbours) < 4.5 / 360_000**0.5


def test_counts_are_exact_when_random_numbers_coincide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chance, "_bits", lambda keys, n, stream: np.zeros((3, n), np.uint64))
    masked = span_masks(keys(3), np.full(3, 40), 40, prob=0.2, length=1)
    assert (masked.sum(1) == 8).all()


def test_preferred_positions_win_first() -> None:
    candidates = np.broadcast_to(np.arange(12) < 10, (6000, 12))
    preferred = np.broadcast_to(np.arange(12) % 2 == 0, (6000, 12))  # 0, 2, 4, 6, 8; 10 is none
    few = chance.choose(keys(6000), candidates, np.full(6000, 2), 1, preferred)
    assert (few.sum(1) == 2).all()
    expected = np.where(candidates & preferred, 2 / 5, 0)[0]
    assert few.mean(0) == pytest.approx(expected, abs=4 * 0.0064)
    many = chance.choose(keys(6000), candidates, np.full(6000, 7), 1, preferred)
    assert (many.sum(1) == 7).all()
    assert many[:, :10:2].all()
    assert many[:, 1:10:2].mean(0) == pytest.approx(np.full(5, 2 / 5), abs=4 * 0.0064)
