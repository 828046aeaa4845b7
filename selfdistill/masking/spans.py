"""Spans of a sequence, as wav2vec 2.0 (section 3.1) masks them.

data2vec 1.0 uses them for speech and text (its sections 4.2 and 4.3).
"""

import numpy as np

from selfdistill.masking.chance import choose, uniform


def check_lengths(lengths: np.ndarray, total: int) -> None:
    """``ValueError`` unless each of ``lengths`` (int64 [B]) is from 2 to ``total``."""
    wrong = np.flatnonzero((lengths < 2) | (lengths > total))
    if len(wrong):
        raise ValueError(
            f"row {wrong[0]} has {lengths[wrong[0]]} valid tokens; a row with masked and visible "
            f"tokens needs at least 2, and the batch holds at most {total}: drop or join such rows"
        )


def lengthen(covered: np.ndarray, length: int) -> None:
    """Let every True of bool [..., T] reach ``length`` positions to the right, in place."""
    reach = 1
    while reach < length:
        step = min(reach, length - reach)
        covered[..., step:] |= covered[..., :-step].copy()
        reach += step


def span_masks(
    keys: np.ndarray,
    lengths: np.ndarray,
    total: int,
    *,
    prob: float,
    length: int,
    min_spans: int = 1,
    equal_counts: bool = False,
    cut_at_end: bool = False,
) -> np.ndarray:
    """Masks made of spans that may overlap (wav2vec 2.0, section 3.1).

    A row of n valid tokens gets floor(prob * n / length + u) spans, u uniform in [0, 1), whose
    starts are drawn without replacement. Padding is never masked, and neither nothing nor all of
    the valid tokens are.

    Args:
        keys: uint64 [B], see ``row_keys``.
        lengths: int64 [B], valid tokens of each row, 2 to ``total``.
        total: T, tokens of a row with its padding, below 2**24.
        prob: share of tokens that the spans would cover if none overlapped.
        length: tokens per span.
        min_spans: spans of a row at least.
        equal_counts: reduce every row to the smallest count of the batch by uncovering random
            tokens; only then does a row's mask depend on the other rows.
        cut_at_end: False: starts come from [0, n - length), so spans are whole and the last token
            is never masked (speech); in a row too short for its spans they come from
            [0, spans + 1) and what sticks out is cut. True: starts come from all n tokens (text).

    Returns:
        bool [B, T], True where masked.

    Raises:
        ValueError: a length is out of range.
    """
    check_lengths(lengths, total)
    spans = np.floor(prob * lengths / length + uniform(keys, 1)[:, 0]).astype(np.int64)
    spans = np.maximum(spans, min_spans)  # [B]
    if cut_at_end:
        places = lengths
        spans = np.minimum(spans, places)
    else:
        places = np.where(lengths - length <= spans, spans + 1, lengths - length)  # [B]
    positions = np.arange(max(total, int(places.max())))
    covered = choose(keys, positions < places[:, None], spans, stream=1)[:, :total]
    lengthen(covered, length)
    covered &= positions[:total] < lengths[:, None]

    counts = covered.sum(axis=1)
    wanted = np.minimum(counts, lengths - 1)
    if equal_counts:
        wanted = np.full_like(wanted, wanted.min())
    if np.array_equal(wanted, counts):
        return covered
    return choose(keys, covered, wanted, stream=2)
