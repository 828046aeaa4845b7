from itertools import pairwise

import numpy as np
import pytest

from selfdistill.data.order import SampleOrder

SIZES = [5, 1, 0, 17, 8]
TOTAL = sum(SIZES)


def test_every_sample_once_per_epoch() -> None:
    order = SampleOrder(SIZES, seed=3)
    for epoch in range(4):
        seen = [order.index(p) for p in range(epoch * TOTAL, (epoch + 1) * TOTAL)]
        assert sorted(seen) == list(range(TOTAL))


def test_samples_of_a_shard_stay_together() -> None:
    order = SampleOrder(SIZES, seed=3)
    shard_of = np.repeat(np.arange(len(SIZES)), SIZES)
    shards = [shard_of[order.index(p)] for p in range(TOTAL)]
    changes = sum(a != b for a, b in pairwise(shards))
    assert changes == sum(size > 0 for size in SIZES) - 1


def test_place_decides_not_history() -> None:
    straight = SampleOrder(SIZES, seed=3)
    expected = [straight.index(p) for p in range(3 * TOTAL)]
    places = np.random.default_rng(0).permutation(3 * TOTAL)
    jumping = SampleOrder(SIZES, seed=3)
    assert {int(p): jumping.index(int(p)) for p in places} == dict(enumerate(expected))


@pytest.mark.parametrize("sizes", [[40], [1] * 40])
def test_epochs_and_seeds_differ(sizes: list[int]) -> None:
    order, other = SampleOrder(sizes, seed=0), SampleOrder(sizes, seed=1)
    streams = [[order.index(e * 40 + p) for p in range(40)] for e in range(2)]
    streams.append([other.index(p) for p in range(40)])
    assert len({tuple(stream) for stream in [*streams, list(range(40))]}) == 4


def test_shards_of_equal_size_are_shuffled_differently() -> None:
    order = SampleOrder([50, 50], seed=0)
    halves = np.array([order.index(p) for p in range(100)]).reshape(2, 50)
    assert not np.array_equal(halves[0] % 50, halves[1] % 50)


def test_the_order_is_the_same_on_every_machine() -> None:
    """A run is resumed with what this version writes today; a change here breaks that."""
    order = SampleOrder([3, 4], seed=7)
    assert [order.index(p) for p in range(14)] == [0, 1, 2, 3, 5, 4, 6, 0, 2, 1, 4, 6, 3, 5]
    assert [order.replacement(5, attempt) for attempt in range(1, 6)] == [4, 1, 0, 3, 4]


def test_replacements_are_uniform_and_depend_on_place_and_attempt() -> None:
    order = SampleOrder([4, 4], seed=0)
    drawn = np.array([[order.replacement(p, a) for a in range(1, 5)] for p in range(1000)])
    counts = np.bincount(drawn.ravel(), minlength=8)
    assert len(counts) == 8
    assert counts.min() > 400  # 500 expected, deviation 21
    assert counts.max() < 600
    assert abs(np.corrcoef(drawn.T) - np.eye(4)).max() < 0.15


def test_many_at_once_are_those_one_by_one() -> None:
    order = SampleOrder(SIZES, seed=3)
    one_by_one = [order.index(p) for p in range(4 * TOTAL)]
    for first, count in [(0, 4 * TOTAL), (3, 9), (TOTAL - 1, 2), (TOTAL, TOTAL), (50, 0)]:
        found = SampleOrder(SIZES, seed=3).indices(first, count)
        assert found.dtype == np.int64
        assert found.tolist() == one_by_one[first : first + count]


def test_the_next_shard_is_known_beforehand() -> None:
    order = SampleOrder(SIZES, seed=3)
    shard_of = np.repeat(np.arange(len(SIZES)), SIZES)
    shards = [int(shard_of[order.index(p)]) for p in range(3 * TOTAL)]
    jumping = SampleOrder(SIZES, seed=3)
    for place in np.random.default_rng(0).permutation(2 * TOTAL):
        epoch_end = (int(place) // TOTAL + 1) * TOTAL
        later = [s for s in shards[place:epoch_end] if s != shards[place]]
        expected = later[0] if later else shards[epoch_end]
        assert shard_of[jumping.in_next_shard(int(place))] == expected
