"""Counts, short rows and independence of the masks of data2vec 2.0."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from recorded import keys

from selfdistill.masking import (
    clone_keys,
    masked_count,
    painted_spans,
    painted_squares,
    random_tokens,
)

AUDIO: Any = {"prob": 0.5, "adjust": 0.05, "length": 5}
IMAGE: Any = {"prob": 0.8, "adjust": 0.07, "length": 3, "inverse": True}
SEQUENCES: dict[str, Callable[..., np.ndarray]] = {
    "painted_spans": lambda keys, lengths, total: painted_spans(keys, lengths, total, **AUDIO),
    "random_tokens": lambda keys, lengths, total: random_tokens(keys, lengths, total, prob=0.48),
}


def test_counts_are_rounded_as_the_original_rounds() -> None:
    assert masked_count(749, 0.5) == 374
    assert masked_count(196, 0.8, inverse=True) == 157
    assert masked_count(100, 0.8, inverse=True) == 81
    assert masked_count(512, 0.48, inverse=True) == 246
    assert (painted_squares(keys(5), (10, 10), **IMAGE).sum((1, 2)) == 81).all()
    assert (random_tokens(keys(5), np.full(5, 100), 100, prob=0.8).sum(1) == 81).all()


@pytest.mark.parametrize("prob", [0.0, 0.3, 0.5, 0.77, 1.0])
@pytest.mark.parametrize("length", [1, 2, 5, 30])
def test_short_rows(prob: float, length: int) -> None:
    lengths = np.arange(2, 13).repeat(20)
    spans = painted_spans(keys(220), lengths, 15, prob=prob, length=length, adjust=0.05)
    tokens = random_tokens(keys(220), lengths, 15, prob=prob)
    for masked, counts in (
        (spans, [int(n * prob) for n in lengths]),
        (tokens, [n - int(n * (1 - prob)) for n in lengths]),
    ):
        assert masked.shape == (220, 15)
        assert not masked[np.arange(15) >= lengths[:, None]].any()
        np.testing.assert_array_equal(masked.sum(1), np.clip(counts, 1, lengths - 1))


@pytest.mark.parametrize("generator", SEQUENCES)
def test_a_mask_depends_on_its_key_and_length_only(generator: str) -> None:
    lengths = np.random.default_rng(0).integers(2, 60, 50)
    together = SEQUENCES[generator](keys(50), lengths, 60)
    for i, n in enumerate(lengths):
        alone = SEQUENCES[generator](keys(1, i), lengths[i : i + 1], int(n))[0]
        np.testing.assert_array_equal(together[i, :n], alone)


def test_a_mask_of_squares_depends_on_its_key_only() -> None:
    together = painted_squares(keys(30), (9, 14), **IMAGE)
    for i in range(30):
        alone = painted_squares(keys(1, i), (9, 14), **IMAGE)[0]
        np.testing.assert_array_equal(together[i], alone)


@pytest.mark.parametrize(
    "draw",
    [
        lambda keys: painted_spans(keys, np.full(len(keys), 100), 100, **AUDIO),
        lambda keys: painted_squares(keys, (14, 14), **IMAGE).reshape(len(keys), -1),
        lambda keys: random_tokens(keys, np.full(len(keys), 100), 100, prob=0.48),
    ],
)
def test_masks_of_one_sample_are_independent(draw: Callable[..., np.ndarray]) -> None:
    samples, masks = 500, 6
    masked = draw(clone_keys(keys(samples), masks))
    assert len({mask.tobytes() for mask in masked}) == samples * masks
    np.testing.assert_array_equal(masked[::masks], draw(keys(samples)))
    centred = (masked - masked.mean(0)).reshape(samples, masks, -1)
    # sum over pairs of a sample's masks: independent masks have zero mean
    pairs = (centred.sum(1) ** 2).sum(1) - (centred**2).sum((1, 2))
    assert abs(pairs.mean()) < 4.5 * pairs.std() / samples**0.5


@pytest.mark.parametrize("generator", SEQUENCES)
@pytest.mark.parametrize("wrong", [0, 1, 21])
def test_lengths_out_of_range(generator: str, wrong: int) -> None:
    with pytest.raises(ValueError, match=rf"row 1 has {wrong} valid tokens"):
        SEQUENCES[generator](keys(3), np.array([20, wrong, 20]), 20)


@pytest.mark.parametrize(
    ("prob", "inverse", "masked"),
    [(0.08, False, 0), (1.0, False, 12), (0.0, True, 0), (0.95, True, 12)],
)
def test_squares_with_nothing_to_see_or_to_predict(prob: float, inverse: bool, masked: int) -> None:
    with pytest.raises(
        ValueError, match=rf"masks {masked} patches, but a grid of 3 x 4 .* 1 to 11"
    ):
        painted_squares(keys(2), (3, 4), prob=prob, length=2, inverse=inverse)


@pytest.mark.parametrize("grid", [(3, 8), (8, 3)])
def test_squares_larger_than_the_grid(grid: tuple[int, int]) -> None:
    assert painted_squares(keys(2), grid, prob=0.5, length=3).any()
    with pytest.raises(ValueError, match=r"length is 4, but a grid .* has room for squares of 3"):
        painted_squares(keys(2), grid, prob=0.5, length=4)
