"""What training leaves out by chance."""

from collections import Counter
from itertools import pairwise

import pytest
import torch

from selfdistill.config import ModelConfig
from selfdistill.models.stochastic_depth import StochasticDepth

CPU = torch.device("cpu")


def drawn(seed: int, **settings: float) -> StochasticDepth:
    found = StochasticDepth(ModelConfig(depth=3, **settings))
    found.seed(seed)
    return found


def test_nothing_is_left_out_by_default() -> None:
    found = drawn(0)
    assert found.run() == [0, 1, 2]
    assert [found.kept(block, 4, CPU) for block in range(3)] == [None] * 3


def test_the_rate_rises_from_the_first_block_to_the_last() -> None:
    found = drawn(0, drop_path=0.5)
    assert found.rates == [0, 0.25, 0.5]
    assert found.kept(0, 8, CPU) is None
    assert [len(rows) for rows in found.kept(1, 8, CPU) or ()] == [6, 6]
    assert [len(rows) for rows in found.kept(2, 8, CPU) or ()] == [4, 4]


@pytest.mark.parametrize("rows", [2, 7, 10])
def test_each_row_keeps_a_branch_as_often_as_it_should(rows: int) -> None:
    found, times, counts = drawn(0, drop_path=0.3), Counter[int](), Counter[int]()
    torch.manual_seed(0)
    for _ in range(2000):
        kept = found.kept(2, rows, CPU)
        assert kept is not None
        for part in kept:
            assert len(part) == len(part.unique())
            times.update(part.tolist())
            counts[len(part)] += 1
    assert max(counts) - min(counts) <= 1  # a compiled block sees few shapes
    assert {row: n / 4000 for row, n in times.items()} == pytest.approx(
        dict.fromkeys(range(rows), 0.7), abs=0.03
    )


def test_a_row_may_keep_one_branch_and_not_the_other() -> None:
    found = drawn(0, drop_path=0.5)
    torch.manual_seed(0)
    kept = [found.kept(2, 8, CPU) or () for _ in range(20)]
    assert len({tuple(sorted(rows.tolist())) for branches in kept for rows in branches}) > 20


def test_one_row_at_least_keeps_it() -> None:
    found = drawn(0, drop_path=0.9)
    assert {len(rows) for _ in range(50) for rows in found.kept(2, 1, CPU) or ()} == {1}


def test_another_seed_leaves_out_other_blocks() -> None:
    runs = {tuple(drawn(seed, layer_drop=0.5).run()) for seed in range(20)}
    assert len(runs) > 4


def test_processes_with_one_seed_leave_out_the_same_blocks_and_as_many_rows() -> None:
    one, other = drawn(5, layer_drop=0.4, drop_path=0.3), drawn(5, layer_drop=0.4, drop_path=0.3)
    runs = []
    for seed, found in enumerate((one, other)):
        torch.manual_seed(seed)
        of_steps = []
        for _ in range(20):
            kept = [found.kept(block, 9, CPU) for block in found.run()]
            of_steps.append([rows and [*map(len, rows)] for rows in kept])
        runs.append(of_steps)
    assert runs[0] == runs[1]
    assert any(a != b for a, b in pairwise(runs[0]))
