"""The statistics recorded from the original generators, and what to compare them with."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from selfdistill.masking import row_keys

RECORDED = json.loads((Path(__file__).parents[1] / "golden" / "mask_stats.json").read_text())


def keys(n: int, first: int = 0) -> np.ndarray:
    return row_keys(17, np.arange(first, first + n))


def run_lengths(masked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row and length of every run of masked tokens in bool [B, T]."""
    edges = np.diff(np.pad(masked, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, starts = np.nonzero(edges == 1)
    return rows, np.nonzero(edges == -1)[1] - starts


def counts_per_row(rows: np.ndarray, sizes: np.ndarray, num_rows: int, most: int) -> np.ndarray:
    """How many things of sizes 1 to ``most``, and of larger ones together: [num_rows, most + 1]."""
    counts = np.zeros((num_rows, most + 1))
    np.add.at(counts, (rows, np.minimum(sizes, most + 1) - 1), 1)
    return counts


def recorded_counts(shares: dict[str, float], things: int, rows: int) -> np.ndarray:
    """Mean counts per row of the sizes in ``shares``, then of all larger ones together."""
    assert list(shares) == [str(n + 1) for n in range(len(shares))]
    return np.array([*shares.values(), 1 - sum(shares.values())]) * things / rows


def assert_same_mean(ours: np.ndarray, recorded: Any, recorded_rows: int) -> None:
    """``ours`` [rows, ...] and as many recorded rows are draws from one distribution.

    The rows are independent, whatever is correlated within one; so the difference of the two means
    has the variance of a row times the sum of the inverse numbers of rows. Of a thousand
    comparisons of equal distributions, one in 150 has any beyond 4.5 standard deviations. What was
    recorded is rounded to six digits.
    """
    error = np.sqrt(ours.var(axis=0) * (1 / len(ours) + 1 / recorded_rows))
    difference = np.abs(ours.mean(axis=0) - recorded)
    assert (difference <= 4.5 * error + 1e-5).all(), np.max(difference / error)
