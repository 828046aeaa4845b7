"""How far a score may be from what endless test samples would give."""

import numpy as np

DRAWS = 1000
LEVEL = 0.95
BLOCK = 1_000_000
"""Samples that are drawn at a time."""
_DIGITS = 9
"""Values that differ by less are the same, so that few are left."""

Interval = tuple[float, float]


def mean_interval(values: np.ndarray, seed: int, groups: np.ndarray | None = None) -> Interval:
    """Percentile bootstrap interval (95 %) of a mean over test samples.

    The draws with replacement are made by value: how often each distinct value is drawn is
    multinomial, which is the same chance and takes no time where values are few. It says nothing
    about other training samples; and where all values are equal it has no width.

    Args:
        values: float or bool [N], one per sample, such as whether it was told right.
        groups: int64 [N], samples of one number are drawn together; None: each by itself.
    """
    if groups is not None:
        return ratio_interval(np.bincount(groups, values), np.bincount(groups), seed)
    distinct, counts = np.unique(np.round(values.astype(np.float64), _DIGITS), return_counts=True)
    total = len(values)
    drawn = np.random.default_rng(seed).multinomial(total, counts / total, DRAWS)
    return _percentiles(drawn @ distinct / total)


def standard_error(right: np.ndarray, groups: np.ndarray | None = None) -> float:
    """Of the mean p of n test samples: binomial, sqrt(p (1 - p) / n); with ``groups`` (int64 [n])
    that of a mean over whole groups, whose samples may be right or wrong together.

    Args:
        right: float64 [n] from 0 to 1.
    """
    mean = right.mean()
    if groups is None:
        return float(np.sqrt(mean * (1 - mean) / len(right)))
    return float(np.sqrt((np.bincount(groups, right - mean) ** 2).sum()) / len(right))


def ratio_interval(tops: np.ndarray, bottoms: np.ndarray, seed: int) -> Interval:
    """The same of sum(tops) / sum(bottoms), [N] each, where samples are drawn with their pairs."""
    tops, bottoms = tops[bottoms > 0], bottoms[bottoms > 0]
    rng, total = np.random.default_rng(seed), len(tops)
    found: list[np.ndarray] = []
    at_once = max(1, BLOCK // total)
    for start in range(0, DRAWS, at_once):
        drawn = rng.integers(total, size=(min(at_once, DRAWS - start), total))
        found.append(tops[drawn].sum(axis=1) / bottoms[drawn].sum(axis=1))
    return _percentiles(np.concatenate(found))


def _percentiles(found: np.ndarray) -> Interval:
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(found, [tail, 100 - tail])
    return float(low), float(high)
