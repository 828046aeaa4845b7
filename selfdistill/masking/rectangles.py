"""Rectangles of an image grid, as BEiT masks them (algorithm 1; section 4.1 of data2vec 1.0)."""

import itertools
from collections.abc import Iterator

import numpy as np

from selfdistill.masking.chance import uniform

_ATTEMPTS_PER_BLOCK = 10
_ATTEMPTS_PER_DRAW = 16  # drawing for several attempts at once saves calls


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
