"""Masks of the student's input: spans of a sequence and blocks of an image grid.

All chance comes from a counter-based hash of the row's key, so a row gets the same mask whatever
batch, worker or process it lands in, and a resumed run draws the masks it would have drawn.

The span masks are those of wav2vec 2.0 (section 3.1) as data2vec uses them for speech and text
(data2vec 1.0, sections 4.1 and 4.3); the block masks are algorithm 1 of BEiT (section 4.2 of
data2vec 1.0).
"""

import itertools
from collections.abc import Iterator

import numpy as np

_GAMMA = np.uint64(0x9E3779B97F4A7C15)  # splitmix64's increment: odd, bits of the golden ratio
_POSITION_BITS = np.uint64(2**24 - 1)
_LAST_TICKET = np.uint64(2**64 - 1)
_ATTEMPTS_PER_BLOCK = 10
_ATTEMPTS_PER_DRAW = 16  # drawing for several attempts at once saves calls


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64, a bijection of uint64; overwrites ``x`` and returns it."""
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


def _bits(keys: np.ndarray, n: int, stream: int) -> np.ndarray:
    """uint64 [B, n]: value i of a row depends on its key, ``stream`` and i only."""
    branch = _mix(np.array([stream], dtype=np.uint64) * _GAMMA)  # [1]
    starts = _mix(keys ^ branch)  # [B]
    return _mix(starts[:, None] + np.arange(1, n + 1, dtype=np.uint64) * _GAMMA)


def row_keys(seed: int, positions: np.ndarray) -> np.ndarray:
    """The keys that decide the masks of rows.

    Args:
        seed: of the run.
        positions: int64 [B], the rows' global positions in the data stream.

    Returns:
        uint64 [B].
    """
    run = _mix(np.array([seed % 2**64], dtype=np.uint64) + _GAMMA)  # [1]
    return _mix(run + positions.astype(np.uint64) * _GAMMA)


def uniform(keys: np.ndarray, n: int, stream: int = 0) -> np.ndarray:
    """Uniform numbers in [0, 1).

    Args:
        keys: uint64 [B].
        n: numbers per row; asking for more does not change the first ones.
        stream: tells apart the independent uses that one key is put to.

    Returns:
        float64 [B, n].
    """
    return (_bits(keys, n, stream) >> np.uint64(11)) * 2.0**-53


def _choose(
    keys: np.ndarray, candidates: np.ndarray, counts: np.ndarray, stream: int
) -> np.ndarray:
    """``counts`` [B] of each row's ``candidates`` (bool [B, n]) without replacement: bool [B, n].

    Every position draws a ticket and the smallest tickets win. The position fills the low bits,
    so no two tickets are equal and the count is exact.
    """
    rows, n = candidates.shape
    tickets = _bits(keys, n, stream)
    tickets &= ~_POSITION_BITS
    tickets |= np.arange(n, dtype=np.uint64)
    tickets = np.where(candidates, tickets, _LAST_TICKET)
    last = np.sort(tickets, axis=1)[np.arange(rows), counts - 1]  # [B]
    return tickets <= last[:, None]


def _lengthen(covered: np.ndarray, length: int) -> None:
    """Let every True of bool [B, T] reach ``length`` positions to the right, in place."""
    reach = 1
    while reach < length:
        step = min(reach, length - reach)
        covered[:, step:] |= covered[:, :-step].copy()
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
    wrong = np.flatnonzero((lengths < 2) | (lengths > total))
    if len(wrong):
        raise ValueError(
            f"row {wrong[0]} has {lengths[wrong[0]]} valid tokens; a row with masked and visible "
            f"tokens needs at least 2, and the batch holds at most {total}: drop or join such rows"
        )
    spans = np.floor(prob * lengths / length + uniform(keys, 1)[:, 0]).astype(np.int64)
    spans = np.maximum(spans, min_spans)  # [B]
    if cut_at_end:
        places = lengths
        spans = np.minimum(spans, places)
    else:
        places = np.where(lengths - length <= spans, spans + 1, lengths - length)  # [B]
    positions = np.arange(max(total, int(places.max())))
    covered = _choose(keys, positions < places[:, None], spans, stream=1)[:, :total]
    _lengthen(covered, length)
    covered &= positions[:total] < lengths[:, None]

    counts = covered.sum(axis=1)
    wanted = np.minimum(counts, lengths - 1)
    if equal_counts:
        wanted = np.full_like(wanted, wanted.min())
    if np.array_equal(wanted, counts):
        return covered
    return _choose(keys, covered, wanted, stream=2)


def _attempts(keys: np.ndarray) -> Iterator[np.ndarray]:
    """Four uniform numbers per row, float64 [B, 4], for one attempt after another."""
    for stream in itertools.count(1):
        draws = uniform(keys, 4 * _ATTEMPTS_PER_DRAW, stream)
        yield from draws.reshape(-1, _ATTEMPTS_PER_DRAW, 4).swapaxes(0, 1)


def _rectangles(
    draws: np.ndarray, grid: tuple[int, int], areas: np.ndarray, min_aspect: float
) -> tuple[np.ndarray, np.ndarray]:
    """One rectangle per row, of about ``areas`` [A], from three uniform numbers [A, 3].

    Returns:
        int64 [2, A], first row and column; int64 [2, A], height and width, 0 if the rectangle is
        not smaller than the grid in both directions.
    """
    aspects = np.exp(np.log(min_aspect) * (1 - 2 * draws[:, 0]))  # uniform in the logarithm
    squares = np.empty((2, len(areas)))
    np.multiply(areas, aspects, out=squares[0])
    np.divide(areas, aspects, out=squares[1])
    sizes = np.rint(np.sqrt(squares)).astype(np.int64)
    room = np.maximum(np.array(grid)[:, None] - sizes, 0)
    sizes *= room.all(axis=0)
    return (draws[:, 1:].T * (room + 1)).astype(np.int64), sizes


def block_masks(
    keys: np.ndarray,
    grid: tuple[int, int],
    *,
    count: int,
    min_block: int,
    max_block: int | None = None,
    min_aspect: float = 0.3,
) -> np.ndarray:
    """Masks made of rectangles that may overlap (BEiT, algorithm 1, in its authors' form).

    Rectangles are added until ``count`` patches are masked or ten attempts in a row fail, so a
    mask often stays one or two patches short, and never exceeds the count. An attempt fails if the
    rectangle is not smaller than the grid in both directions, adds nothing, or adds more than is
    left. Once less than ``min_block`` is left, rectangles get smaller than that.

    Args:
        keys: uint64 [B], see ``row_keys``.
        grid: patches from top to bottom (h) and from left to right (w).
        count: patches to mask, 1 to h * w - 1.
        min_block: smallest area of a rectangle, in patches.
        max_block: most patches that one rectangle may add; None: no limit but ``count``.
        min_aspect: smallest ratio of height to width; the largest is its inverse.

    Returns:
        bool [B, h, w], True where masked; at least one patch is.

    Raises:
        ValueError: ``count`` leaves nothing to see or nothing to predict.
    """
    height, width = grid
    if not 0 < count < height * width:
        raise ValueError(
            f"count is {count}, but a grid of {height} x {width} patches needs 1 to "
            f"{height * width - 1} masked ones"
        )
    limit = count if max_block is None else max_block
    free = np.ones((len(keys), height * width), dtype=bool)
    left = np.full(len(keys), count)  # [B] patches that may still be masked
    failures = np.zeros(len(keys), dtype=np.int64)  # [B] attempts since the last rectangle
    above = np.repeat(np.tri(height + 1, height, -1, dtype=bool), width, axis=1)  # [h + 1, h * w]
    before = np.tile(np.tri(width + 1, width, -1, dtype=bool), height)  # [w + 1, h * w]
    active = np.arange(len(keys))
    for attempt in _attempts(keys):
        draws = attempt[active]  # [A, 4]
        cap = np.minimum(left[active], limit)
        # with less than min_block left the interval is reversed: areas from cap to min_block
        areas = min_block + (cap - min_block) * draws[:, 0]
        (top, first), (tall, wide) = _rectangles(draws[:, 1:], grid, areas, min_aspect)
        new = (above[top] ^ above[top + tall]) & (before[first] ^ before[first + wide])
        new &= free[active]  # [A, h * w]
        added = new.view(np.uint8).sum(axis=1, dtype=np.uint32).astype(np.int64)
        accepted = (added > 0) & (added <= cap)
        rows = active[accepted]
        free[rows] ^= new[accepted]
        left[rows] -= added[accepted]
        failures[active] += 1
        failures[rows] = 0
        active = active[(left[active] > 0) & (failures[active] < _ATTEMPTS_PER_BLOCK)]
        if not len(active):
            break

    empty = np.flatnonzero(left == count)
    free[empty, (uniform(keys[empty], 1)[:, 0] * free.shape[1]).astype(np.int64)] = False
    return ~free.reshape(-1, height, width)
