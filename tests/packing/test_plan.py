"""Which sample comes into which shard."""

import numpy as np
import pytest

from selfdistill.packing.plan import Shape, assign


def plan(sizes: np.ndarray, seed: int = 0, size: int = 100_000, least: int = 1) -> list[np.ndarray]:
    return assign(sizes, seed, Shape("train", size, least))


def test_every_sample_is_in_one_shard_of_about_the_size() -> None:
    sizes = np.random.default_rng(0).integers(0, 2000, 5000)
    shards = plan(sizes)
    assert sorted(np.concatenate(shards).tolist()) == list(range(5000))
    totals = [int((sizes[shard] + 768).sum()) for shard in shards]
    assert 0.97 * 100_000 < np.mean(totals) <= 100_000
    assert max(totals) < 1.05 * 100_000


def test_neighbours_are_not_neighbours_and_the_seed_decides() -> None:
    sizes = np.full(2000, 100)
    shards = plan(sizes)
    steps = np.concatenate([np.diff(shard) for shard in shards])
    assert (np.abs(steps) < 3).mean() < 0.02
    spread = [len(np.unique(shard // 200)) for shard in shards]
    assert min(spread) == 10
    again, other = plan(sizes), plan(sizes, seed=1)
    assert all(np.array_equal(a, b) for a, b in zip(shards, again, strict=True))
    assert not np.array_equal(np.concatenate(shards), np.concatenate(other))


def test_the_order_is_that_of_all_versions() -> None:
    assert plan(np.ones(8, int), least=2)[0].tolist() == [6, 0, 3, 1]


@pytest.mark.parametrize("sizes", [[5], [5, 5, 5], [1 << 30, 1, 1, 1, 1]])
def test_there_are_as_many_shards_as_wanted_but_no_empty_ones(sizes: list[int]) -> None:
    shards = plan(np.array(sizes, np.int32), size=1 << 40, least=4)
    assert len(shards) == min(4, len(sizes))
    assert all(len(shard) for shard in shards)
    assert sorted(np.concatenate(shards).tolist()) == list(range(len(sizes)))


def test_a_sample_larger_than_a_shard_has_one_of_its_own() -> None:
    shards = plan(np.array([10, 10, 1_000_000_000, 10]), size=50_000_000)
    assert sorted(len(shard) for shard in shards) in ([1, 3], [1, 1, 2], [2, 2], [4])
    assert sorted(np.concatenate(shards).tolist()) == [0, 1, 2, 3]
