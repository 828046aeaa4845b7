"""Distributions of the masks of data2vec 2.0: the originals' recorded ones and a loop's."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from recorded import (
    RECORDED,
    assert_same_mean,
    counts_per_row,
    keys,
    recorded_counts,
    run_lengths,
)
from scipy import ndimage

from selfdistill.masking import exact, painted_spans, painted_squares, random_tokens

SEQUENCES: dict[str, Callable[..., np.ndarray]] = {
    "painted_spans": lambda keys, lengths, total: painted_spans(
        keys, lengths, total, prob=0.5, adjust=0.05, length=5
    ),
    "random_tokens": lambda keys, lengths, total: random_tokens(keys, lengths, total, prob=0.48),
}


@pytest.fixture
def canvases(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """What gets painted before single tokens are added or taken away, bool [B, n] per call."""
    seen = []
    choose = exact.choose

    def watch(*args: Any, **kwargs: Any) -> np.ndarray:
        seen.append(kwargs["preferred"])
        return choose(*args, **kwargs)

    monkeypatch.setattr(exact, "choose", watch)
    return seen


def assert_same_runs(masked: np.ndarray, shares: dict[str, float], runs: int, rows: int) -> None:
    counts = counts_per_row(*run_lengths(masked), len(masked), len(shares))
    assert_same_mean(counts, recorded_counts(shares, runs, rows), rows)


@pytest.mark.parametrize("generator", SEQUENCES)
@pytest.mark.parametrize("case", [0, 1, 2])
def test_sequences_follow_the_recording(generator: str, case: int) -> None:
    recorded = RECORDED[generator][case]
    rows, tokens = recorded["rows"], recorded["tokens"]
    masked = SEQUENCES[generator](keys(2000), np.full(2000, tokens), tokens)
    assert (masked.sum(1) == recorded["masked"]).all()
    assert_same_runs(masked, recorded["run_lengths"], recorded["runs"], rows)
    if "visible_runs" in recorded:
        shares, runs = recorded["visible_run_lengths"], recorded["visible_runs"]
        assert_same_runs(~masked, shares, runs, rows)
    assert_same_mean(masked[:, :5], recorded["first_positions"], rows)
    assert_same_mean(masked[:, -12:], recorded["last_positions"], rows)


def components(visible: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Image and size of every group of visible patches that share sides, of bool [B, h, w]."""
    within_an_image = np.zeros((3, 3, 3))
    within_an_image[1] = ndimage.generate_binary_structure(2, 1)
    labels = ndimage.label(visible, within_an_image)[0]
    images = np.zeros(labels.max() + 1, dtype=np.int64)
    images[labels] = np.arange(len(visible))[:, None, None]
    return images[1:], np.bincount(labels.ravel())[1:]


@pytest.mark.parametrize("name", RECORDED["painted_squares"])
def test_squares_follow_the_recording(name: str, canvases: list[np.ndarray]) -> None:
    recorded = RECORDED["painted_squares"][name]
    rows = recorded["draws"]
    height, width = grid = tuple(recorded["grid"])
    settings: Any = {key: recorded[key] for key in ("prob", "length", "adjust")}
    masked = painted_squares(keys(4000), grid, inverse=True, **settings)
    assert (masked.sum((1, 2)) == height * width - recorded["visible"]).all()

    painted = canvases[0].sum(1)
    assert_same_mean(painted, recorded["painted"]["mean"], rows)
    assert_same_mean((painted - painted.mean()) ** 2, recorded["painted"]["std"] ** 2, rows)

    sizes = recorded["component_sizes"]
    counts = counts_per_row(*components(~masked), len(masked), len(sizes))
    assert_same_mean(counts, recorded_counts(sizes, recorded["components"], rows), rows)

    shares = recorded["row_run_lengths"]
    lines, lengths = run_lengths(~masked.reshape(-1, width))
    counts = counts_per_row(lines // height, lengths, len(masked), len(shares))
    assert_same_mean(counts, recorded_counts(shares, recorded["row_runs"], rows), rows)

    places = recorded["visible_probability"]
    at_end = [np.isin(np.arange(side), [0, side - 1]) for side in grid]
    borders = at_end[0].astype(int)[:, None] + at_end[1]
    for ends, place in enumerate(["interior", "edge", "corner"]):
        assert_same_mean((~masked)[:, borders == ends].mean(1), places[place], rows)


def reference(
    source: np.random.Generator, shape: tuple[int, ...], stamps: int, length: int, count: int
) -> np.ndarray:
    """One mask as the published generators make it, for sequences (one axis) and grids (two)."""
    painted = np.zeros(shape, dtype=bool)
    for _ in range(stamps):
        begins = [int(source.integers(side)) - length // 2 for side in shape]
        painted[tuple(slice(max(begin, 0), begin + length) for begin in begins)] = True
    flat = painted.reshape(-1)
    surplus = int(flat.sum()) - count
    wrong = np.flatnonzero(flat if surplus > 0 else ~flat)
    flat[source.choice(wrong, abs(surplus), replace=False)] ^= True
    return painted


def assert_same_distribution(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Of equally many whole masks, bool [B, n] with small n; those drawn often are counted."""
    numbers = [
        masks.reshape(len(masks), -1) @ (1 << np.arange(16))[: ours[0].size]
        for masks in (ours, theirs)
    ]
    a, b = (np.bincount(number, minlength=2**16) for number in numbers)
    often = a + b >= 10
    statistic = ((a - b)[often] ** 2 / (a + b)[often]).sum()
    degrees = np.count_nonzero(often) - 1
    assert degrees > 3
    assert statistic < degrees + 4.5 * (2 * degrees) ** 0.5  # of chi-squared: mean, deviations


@pytest.mark.parametrize(
    ("tokens", "prob", "length", "adjust", "spans"),
    [
        (8, 0.5, 3, 0.25, 2),  # three to six painted
        (7, 0.6, 2, 0.0, 2),  # rarely enough
        (4, 0.5, 5, 0.05, 1),  # a span longer than the row, and less than one of them
        (9, 0.35, 4, 0.6, 2),  # always too many
        (6, 0.5, 1, 0.5, 6),  # single tokens, drawn with replacement
    ],
)
def test_spans_are_distributed_like_a_loop(
    tokens: int, prob: float, length: int, adjust: float, spans: int
) -> None:
    n = 5000
    masked = painted_spans(
        keys(n), np.full(n, tokens), tokens + 2, prob=prob, length=length, adjust=adjust
    )
    assert not masked[:, tokens:].any()
    source = np.random.default_rng(1)
    count = int(tokens * prob)
    loop = [reference(source, (tokens,), spans, length, count) for _ in range(n)]
    assert_same_distribution(masked[:, :tokens], np.array(loop))


@pytest.mark.parametrize(
    ("grid", "prob", "length", "adjust", "inverse", "squares"),
    [
        ((3, 3), 0.5, 2, 0.4, False, 2),
        ((2, 4), 0.5, 2, 0.3, False, 1),
        ((4, 2), 0.65, 2, 0.65, True, 2),
        ((3, 3), 0.5, 3, 0.3, True, 1),  # less than one square
    ],
)
def test_squares_are_distributed_like_a_loop(
    grid: tuple[int, int], prob: float, length: int, adjust: float, inverse: bool, squares: int
) -> None:
    n = 5000
    settings: Any = {"prob": prob, "length": length, "adjust": adjust, "inverse": inverse}
    masked = painted_squares(keys(n), grid, **settings)
    source = np.random.default_rng(1)
    count = int(grid[0] * grid[1] * (1 - prob if inverse else prob))
    loop = np.array([reference(source, grid, squares, length, count) for _ in range(n)])
    assert_same_distribution(masked, ~loop if inverse else loop)


def test_single_tokens_are_uniform() -> None:
    masked = random_tokens(keys(4000), np.full(4000, 6), 8, prob=0.34)
    assert not masked[:, 6:].any()
    numbers = masked[:, :6] @ (1 << np.arange(6))
    counts = np.unique(numbers, return_counts=True)[1]
    assert len(counts) == 20  # three of six, for floor(6 * 0.66) stay visible
    assert ((counts - 200) ** 2 / 200).sum() < 44  # chi-squared, 19 degrees: p = 0.001


def test_the_number_of_squares_is_rounded_as_the_original_rounds(
    canvases: list[np.ndarray],
) -> None:
    # 180 * 0.35 / 9 is 6.999999999999999, but 180 * (0.35 / 9) is 7
    settings: Any = {"prob": 0.75, "adjust": 0.1, "length": 3, "inverse": True}
    painted_squares(keys(500), (12, 15), **settings)
    assert 54 < canvases[0].sum(1).max() <= 63
