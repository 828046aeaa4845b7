"""Which samples make up a step, by count and by length."""

from itertools import pairwise

import numpy as np
import pytest

from selfdistill.data.order import SampleOrder
from selfdistill.data.steps import STEPS_PER_WINDOW, ByCount, ByLength, data_step
from selfdistill.errors import UserError


def speech(count: int, seed: int = 0) -> np.ndarray:
    """Lengths in seconds as those of LibriSpeech: most between 12 and 16, all from 1 to 25."""
    rng = np.random.default_rng(seed)
    long = rng.normal(14, 1.3, count)
    short = rng.uniform(1.3, 13, count)
    lengths = np.where(rng.random(count) < 0.62, long, short).clip(1.3, 24.5)
    return lengths.astype(np.float32)


def by_length(lengths: np.ndarray, batch: float, parts: int = 1, shards: int = 7) -> ByLength:
    sizes = [len(part) for part in np.array_split(lengths, shards)]
    return ByLength(SampleOrder(sizes, seed=3), lengths, batch, parts)


def positions(plan: ByLength | ByCount, step: int, part: int, parts: int) -> np.ndarray:
    share = plan.share(step, part, parts)
    assert [plan.order.index(p) for p in share.positions.tolist()] == share.samples.tolist()
    return share.positions


def all_parts(plan: ByLength | ByCount, step: int, parts: int) -> np.ndarray:
    return np.concatenate([positions(plan, step, part, parts) for part in range(parts)])


@pytest.mark.parametrize("parts", [1, 2, 6])
def test_a_count_is_cut_into_slices(parts: int) -> None:
    plan = ByCount(SampleOrder([7, 20], seed=3), 12)
    assert all_parts(plan, 3, parts).tolist() == list(range(36, 48))
    assert {len(positions(plan, 3, part, parts)) for part in range(parts)} == {12 // parts}


@pytest.mark.parametrize(("count", "batch"), [(5_000, 300.0), (900, 2_000.0), (40, 100.0)])
def test_every_position_has_one_step(count: int, batch: float) -> None:
    plan = by_length(speech(count), batch)
    steps = 3 * plan.steps  # three windows
    seen = np.concatenate([positions(plan, step, 0, 1) for step in range(steps)])
    assert sorted(seen) == list(range(3 * plan.size))
    for window in range(3):
        own = seen[window * plan.size : (window + 1) * plan.size]
        assert sorted(own) == list(range(window * plan.size, (window + 1) * plan.size))


def test_a_window_is_no_longer_than_an_epoch() -> None:
    """Or samples would come again before others had their turn."""
    lengths = speech(900)
    plan = by_length(lengths, 2_000.0)
    assert 1 < plan.steps < STEPS_PER_WINDOW
    assert plan.size <= len(lengths)
    assert by_length(speech(5_000), 300.0).steps == STEPS_PER_WINDOW


@pytest.mark.parametrize("parts", [2, 3, 8])
def test_processes_share_what_one_alone_would_have(parts: int) -> None:
    lengths = speech(3_000)
    one, several = by_length(lengths, 400.0), by_length(lengths, 400.0, parts)
    for step in range(2 * one.steps):
        assert np.array_equal(positions(one, step, 0, 1), all_parts(several, step, parts))
        sizes = [len(positions(several, step, part, parts)) for part in range(parts)]
        assert max(sizes) - min(sizes) <= 1
        assert min(sizes) >= 1


def test_the_step_decides_not_history() -> None:
    lengths = speech(2_000)
    plan = by_length(lengths, 200.0)
    straight = {step: positions(plan, step, 0, 1).tolist() for step in range(3 * plan.steps)}
    jumping = by_length(lengths, 200.0)
    for step in np.random.default_rng(0).permutation(3 * plan.steps):
        assert positions(jumping, int(step), 0, 1).tolist() == straight[int(step)]


def test_little_is_padding_and_steps_are_equally_long() -> None:
    lengths = speech(30_000)
    plan = by_length(lengths, 3_800.0, parts=16, shards=30)
    assert plan.size < len(lengths)
    padded = valid = 0.0
    totals = []
    for step in range(plan.steps):
        parts = [lengths[index_of(plan, p)] for p in micro_batches(plan, step, 16)]
        padded += sum(len(part) * float(part.max()) for part in parts)
        valid += sum(float(part.sum()) for part in parts)
        totals.append(sum(float(part.sum()) for part in parts))
    assert 1 - valid / padded < 0.02  # 29 % in the order of the stream
    assert np.ptp(totals) < 0.02 * 3_800
    assert abs(np.mean(totals) / 3_800 - 1) < 0.02
    first = micro_batches(plan, 0, 1)[0]
    rows = [len(positions(plan, step, 0, 1)) for step in range(plan.steps)]
    assert min(rows) < 0.7 * max(rows)
    assert len(first) in rows


def micro_batches(plan: ByLength, step: int, parts: int) -> list[np.ndarray]:
    return [positions(plan, step, part, parts) for part in range(parts)]


def index_of(plan: ByLength, positions: np.ndarray) -> np.ndarray:
    return np.array([plan.order.index(int(p)) for p in positions])


def test_steps_of_a_window_come_in_random_order() -> None:
    lengths = speech(6_000)
    plan = by_length(lengths, 300.0)
    means = [float(lengths[index_of(plan, positions(plan, s, 0, 1))].mean()) for s in range(128)]
    assert sorted(means[:64]) != means[:64]
    ranks = [np.argsort(part) for part in (means[:64], means[64:])]
    assert not np.array_equal(*ranks)
    rises = sum(a < b for a, b in pairwise(means[:64]))
    assert 20 < rises < 44


def test_uneven_lengths_leave_no_micro_batch_empty() -> None:
    lengths = np.array([10.0] + [0.001] * 300, np.float32)
    plan = by_length(lengths, 40.0, parts=4, shards=2)
    for step in range(plan.steps * 2):
        assert all(len(part) for part in micro_batches(plan, step, 4))
    none = by_length(np.array([0.0] * 30 + [1.0] * 30, np.float32), 8.0, parts=2, shards=2)
    for step in range(none.steps * 2):
        assert all(len(part) for part in micro_batches(none, step, 2))


@pytest.mark.parametrize("seed", range(5))
def test_uneven_lengths_are_shared_as_one_process_would_have_them(seed: int) -> None:
    """Where a step has hardly more samples than micro-batches, too."""
    rng = np.random.default_rng(seed)
    lengths = np.where(rng.random(200) < 0.5, 15.0, 1.0).astype(np.float32)
    one, several = by_length(lengths, 60.0), by_length(lengths, 60.0, parts=4)
    for step in range(3 * one.steps):
        assert np.array_equal(positions(one, step, 0, 1), all_parts(several, step, 4))


def test_a_step_that_is_too_short_is_refused() -> None:
    lengths = np.full(50, 12.5, np.float32)
    with pytest.raises(UserError, match=r"data.batch_length: 49.9 .* of the 4 .* at least 50$"):
        by_length(lengths, 49.9, parts=4)
    by_length(lengths, 50.0, parts=4)
    with pytest.raises(UserError, match=r"at least 50\.5$"):  # 50 would be refused again
        by_length(np.full(50, 12.6, np.float32), 50.0, parts=4)
    with pytest.raises(UserError, match=r"data.batch_length: no sample has a length"):
        by_length(np.zeros(50, np.float32), 50.0)


@pytest.mark.parametrize(
    ("passed_over", "taken"),
    [
        ([], [0, 1, 2, 3]),
        ([0], [1, 2, 3, 4]),
        ([1, 2], [0, 3, 4, 5]),
        ([0, 2, 4], [1, 3, 5, 6]),
        ([7], [0, 1, 2, 3]),
    ],
)
def test_steps_that_are_passed_over(passed_over: list[int], taken: list[int]) -> None:
    assert [data_step(step, passed_over) for step in range(4)] == taken
