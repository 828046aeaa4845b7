"""The batch of a step is split over the modalities as their weights say."""

import pytest

from selfdistill.data.shares import split_batch
from selfdistill.errors import UserError


@pytest.mark.parametrize(
    ("size", "weights", "split"),
    [
        (7, {"a": 0.3}, {"a": 7}),
        (8, {"a": 1.0, "b": 1.0}, {"a": 4, "b": 4}),
        (60, {"a": 1.0, "b": 2.0, "c": 3.0}, {"a": 10, "b": 20, "c": 30}),
        (60, {"a": 0.5, "b": 1.0, "c": 1.5}, {"a": 10, "b": 20, "c": 30}),
        (10, {"a": 0.1, "b": 0.7, "c": 0.2}, {"a": 1, "b": 7, "c": 2}),
        (5, {"a": 4.0, "b": 6.0}, {"a": 2, "b": 3}),
    ],
)
def test_in_proportion(size: int, weights: dict[str, float], split: dict[str, int]) -> None:
    assert split_batch(size, weights, accumulate=1, world_size=1) == split


def test_over_micro_batches_and_processes() -> None:
    split = split_batch(36, {"a": 1.0, "b": 2.0}, accumulate=2, world_size=3)
    assert split == {"a": 12, "b": 24}


@pytest.mark.parametrize(
    ("size", "weights", "accumulate", "world_size", "words"),
    [
        (10, {"a": 1.0}, 2, 2, r"over train.accumulate=2 micro-batches on 2 processes; .* of 4$"),
        (10, {"a": 1.0, "b": 2.0}, 1, 1, r"in the shares a 1, b 2 of data.sampling_weight .* 3$"),
        (9, {"a": 1.0, "b": 2.0}, 2, 1, r"use a multiple of 6$"),
        (12, {"a": 1.0, "b": 0.5, "c": 0.25}, 1, 2, r"shares a 4, b 2, c 1 .* multiple of 14$"),
    ],
)
def test_a_split_that_does_not_come_out_even(
    size: int, weights: dict[str, float], accumulate: int, world_size: int, words: str
) -> None:
    """The batch size that is named does, and no smaller one would."""
    with pytest.raises(UserError, match=rf"^train.batch_size: {size} samples .*{words}") as caught:
        split_batch(size, weights, accumulate, world_size)
    unit = int(str(caught.value).rsplit(" ", 1)[1])
    assert sum(split_batch(unit, weights, accumulate, world_size).values()) == unit
    for smaller in range(1, unit):
        with pytest.raises(UserError):
            split_batch(smaller, weights, accumulate, world_size)
