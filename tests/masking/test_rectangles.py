"""Rectangles against the recorded masks and an attempt at a time."""

import math
import random
from typing import Any

import numpy as np
import pytest
from recorded import RECORDED, keys

from selfdistill.masking import block_masks, uniform


def reference_block_mask(
    source: Any, height: int, width: int, count: int, least: int, most: int, min_aspect: float
) -> np.ndarray:
    """BEiT's generator one attempt at a time; ``source`` has uniform(a, b) and randint(a, b)."""
    mask = np.zeros((height, width), dtype=bool)
    while mask.sum() < count:
        for _ in range(10):
            cap = min(count - int(mask.sum()), most)
            area = source.uniform(least, cap)
            aspect = math.exp(source.uniform(math.log(min_aspect), math.log(1 / min_aspect)))
            tall, wide = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if tall >= height or wide >= width:
                continue
            top, left = source.randint(0, height - tall), source.randint(0, width - wide)
            window = mask[top : top + tall, left : left + wide]
            if 0 < (~window).sum() <= cap:
                window[:] = True
                break
        else:
            break
    return mask


class KeyedSource:
    """The random numbers that ``block_masks`` draws for a row, one attempt after another."""

    def __init__(self, key: np.ndarray) -> None:
        turns = [uniform(key, 64, stream=1 + turn)[0] for turn in range(12)]
        self.attempts = iter(np.concatenate(turns).reshape(-1, 4).tolist())
        self.rest: list[float] = []

    def uniform(self, a: float, b: float) -> float:
        if len(self.rest) in (0, 2):  # an attempt that does not fit leaves its placement unused
            self.rest = next(self.attempts)
        return a + (b - a) * self.rest.pop(0)

    def randint(self, a: int, b: int) -> int:
        return a + int(self.rest.pop(0) * (b - a + 1))


def test_the_reference_block_generator_is_the_recorded_one() -> None:
    source = random.Random(1234)
    for bits in RECORDED["image_exact"]:
        mask = reference_block_mask(source, 14, 14, 120, 16, 196, 0.3)
        assert int("".join(map(str, mask.ravel().astype(int))), 2) == int(bits, 16)


@pytest.mark.parametrize(
    ("grid", "count", "min_block", "max_block", "min_aspect"),
    [
        ((14, 14), 120, 16, None, 0.3),
        ((14, 14), 75, 16, 60, 0.3),
        ((6, 14), 40, 4, 30, 0.3),
        ((4, 4), 9, 4, None, 0.3),
        ((20, 5), 99, 2, 7, 0.1),
        ((24, 24), 500, 300, None, 0.3),
    ],
)
def test_block_masks_equal_the_reference(
    grid: tuple[int, int], count: int, min_block: int, max_block: int | None, min_aspect: float
) -> None:
    settings: Any = {"min_block": min_block, "max_block": max_block, "min_aspect": min_aspect}
    for i, mask in enumerate(block_masks(keys(60), grid, count=count, **settings)):
        sizes = (count, min_block, max_block or count)
        expected = reference_block_mask(KeyedSource(keys(1, i)), *grid, *sizes, min_aspect)
        assert np.array_equal(mask, expected) if expected.any() else mask.sum() == 1


@pytest.mark.parametrize("name", RECORDED["image"])
def test_block_masks_follow_the_recording(name: str) -> None:
    recorded = RECORDED["image"][name]
    settings = {name: recorded[name] for name in ("count", "min_block", "max_block")}
    masked = block_masks(keys(6000), tuple(recorded["grid"]), **settings)
    counts, expected = masked.sum((1, 2)), recorded["masked_count"]
    rows = 1 / (1 / recorded["draws"] + 1 / len(masked))  # of one sample as noisy as both
    assert counts.max() == expected["max"]
    assert counts.min() > expected["min"] - 8 * expected["std"]
    assert counts.mean() == pytest.approx(expected["mean"], abs=4 * expected["std"] / rows**0.5)
    for count, times in recorded["masked_count_hist"].items():
        share = times / recorded["draws"]
        noise = math.sqrt(share * (1 - share) / rows)
        assert (counts == int(count)).mean() == pytest.approx(share, abs=4 * noise + 2 / 6000)
    probability = np.array(recorded["position_probability"])
    noise_map = np.sqrt(probability * (1 - probability) / rows)
    assert (np.abs(masked.mean(0) - probability) < 4.5 * noise_map).all()


def test_a_mask_does_not_depend_on_its_batch() -> None:
    blocks = block_masks(keys(50), (14, 14), count=120, min_block=16)
    for i in range(50):
        alone = block_masks(keys(1, i), (14, 14), count=120, min_block=16)
        np.testing.assert_array_equal(blocks[i], alone[0])
    assert len({mask.tobytes() for mask in blocks}) == 50


def test_block_masks_that_never_fit_mask_one_random_patch() -> None:
    # no rectangle of about 8 patches is smaller than 3 x 3 in both directions
    masked = block_masks(keys(500), (3, 3), count=8, min_block=8)
    assert (masked.sum((1, 2)) == 1).all()
    assert masked.mean(0) == pytest.approx(np.full((3, 3), 1 / 9), abs=4 * 0.014)


@pytest.mark.parametrize("count", [0, 12, 13])
def test_block_count_out_of_range(count: int) -> None:
    with pytest.raises(ValueError, match=rf"count is {count}, but a grid of 3 x 4 .* 1 to 11"):
        block_masks(keys(2), (3, 4), count=count, min_block=1)
