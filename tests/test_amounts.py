"""Numbers as people read them."""

import math

import pytest

from selfdistill.amounts import counted, round_step, size


def test_one_is_singular() -> None:
    assert [counted(n, "shard") for n in (0, 1, 2)] == ["0 shards", "1 shard", "2 shards"]
    assert counted(1200, "class", "es") == "1,200 classes"


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.00 kB"),
        (3_830_000, "3.83 MB"),
        (16_400_000_000, "16.4 GB"),
        (1_281_000_000_000, "1,281 GB"),
    ],
)
def test_sizes_have_three_digits(count: int, said: str) -> None:
    assert size(count) == said


def test_steps_are_round() -> None:
    assert [round_step(rough) for rough in (0, 1, 1.2, 3, 7, 12)] == [1, 1, 2, 5, 10, 20]
    for rough in [10.0**n for n in range(-12, 12)] + [math.nextafter(1e-3, 1), 0.0049999]:
        step = round_step(rough)
        assert rough <= step * (1 + 1e-9) < 5 * rough
