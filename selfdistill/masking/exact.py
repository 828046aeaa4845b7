"""Masks with an exact number of masked tokens, those of data2vec 2.0 (arXiv 2212.07525).

Its student sees the visible tokens only, so rows of one length must have equally many. The masks
are those of the published runs: spans or squares are painted, which may overlap, and then single
tokens are added or taken away at random until the number is right. Products and quotients are
taken in the original's order, because rounding decides some numbers: of 100 patches with an
inverse probability of 0.8, 19 are visible and not 20.
"""

import numpy as np

from selfdistill.masking.chance import choose, uniform
from selfdistill.masking.spans import check_lengths, lengthen


def painted_spans(
    keys: np.ndarray,
    lengths: np.ndarray,
    total: int,
    *,
    prob: float,
    length: int,
    adjust: float = 0.0,
) -> np.ndarray:
    """Masks made of spans, with exactly floor(prob * n) of a row's n valid tokens masked.

    floor(n * (prob + adjust) / length) spans, but at least one, are painted. Their centres are
    uniform and may coincide; a span begins length // 2 before its centre and is cut at the row's
    ends. At least one valid token is masked, at least one is visible, and padding is never masked.

    Args:
        keys: uint64 [B], see ``row_keys``.
        lengths: int64 [B], valid tokens n of each row, 2 to ``total``.
        total: T, tokens of a row with its padding, below 2**24.
        prob: share of the valid tokens to mask.
        length: tokens per span, at least 1.
        adjust: added to ``prob`` for the number of spans only, to make up for their overlaps.

    Returns:
        bool [B, T], True where masked.

    Raises:
        ValueError: a length is out of range.
    """
    check_lengths(lengths, total)
    spans = np.maximum((lengths * ((prob + adjust) / length)).astype(np.int64), 1)  # [B]
    most = int(spans.max())
    centres = (uniform(keys, most) * lengths[:, None]).astype(np.int64)  # [B, most]
    rows, nth = np.nonzero(np.arange(most) < spans[:, None])
    before = length // 2
    canvas = np.zeros((len(keys), total + length - 1), dtype=bool)  # column 0 is token -before
    canvas[rows, centres[rows, nth]] = True
    lengthen(canvas, length)
    painted = canvas[:, before : before + total]
    valid = np.arange(total) < lengths[:, None]
    counts = np.clip((lengths * prob).astype(np.int64), 1, lengths - 1)
    return choose(keys, valid, counts, stream=1, preferred=painted)


def masked_count(tokens: int, prob: float, inverse: bool = False) -> int:
    """How many tokens a share of ``prob`` masks.

    floor(prob * tokens) or, with ``inverse``, all but floor((1 - prob) * tokens). Inverse squares
    and ``random_tokens`` count in the second way.
    """
    return tokens - int(tokens * (1 - prob)) if inverse else int(tokens * prob)


def painted_squares(
    keys: np.ndarray,
    grid: tuple[int, int],
    *,
    prob: float,
    length: int,
    adjust: float = 0.0,
    inverse: bool = False,
) -> np.ndarray:
    """Masks made of squares, with exactly ``masked_count`` patches masked.

    floor(patches * (prob + adjust) / length**2) squares, but at least one, are painted. Their
    centres are uniform and may coincide; a square begins length // 2 above and to the left of its
    centre and is cut at the edges of the grid.

    Args:
        keys: uint64 [B], see ``row_keys``.
        grid: patches from top to bottom (h) and from left to right (w).
        prob: share of the patches to mask.
        length: side of a square, in patches, at least 1.
        adjust: added to the painted share for the number of squares only, to make up for their
            overlaps.
        inverse: paint a share of 1 - ``prob``, and mask what is not painted.

    Returns:
        bool [B, h, w], True where masked.

    Raises:
        ValueError: a square is larger than the grid, or ``prob`` leaves nothing to see or nothing
            to predict.
    """
    height, width = grid
    cells = height * width
    masked = masked_count(cells, prob, inverse)
    if not 0 < masked < cells:
        raise ValueError(
            f"prob {prob} masks {masked} patches, but a grid of {height} x {width} needs 1 to "
            f"{cells - 1} masked ones"
        )
    if length > min(grid):
        raise ValueError(
            f"length is {length}, but a grid of {height} x {width} patches has room for squares "
            f"of {min(grid)} at most"
        )
    share = 1 - prob if inverse else prob
    squares = max(int(cells * ((share + adjust) / length**2)), 1)
    centres = (uniform(keys, squares) * cells).astype(np.int64)  # [B, squares]
    rows = np.arange(len(keys))[:, None]
    before = length // 2
    # its corner lies ``before`` rows above and columns left of the grid's
    canvas = np.zeros((len(keys), height + length - 1, width + length - 1), dtype=bool)
    canvas[rows, centres // width, centres % width] = True
    lengthen(canvas, length)
    lengthen(canvas.swapaxes(1, 2), length)
    painted = canvas[:, before : before + height, before : before + width].reshape(-1, cells)
    counts = np.full(len(keys), cells - masked if inverse else masked)
    chosen = choose(keys, np.ones_like(painted), counts, stream=1, preferred=painted)
    return (chosen ^ inverse).reshape(-1, height, width)


def random_tokens(keys: np.ndarray, lengths: np.ndarray, total: int, *, prob: float) -> np.ndarray:
    """Masks of single tokens: floor((1 - prob) * n) of a row's n valid tokens stay visible.

    At least one valid token is masked, at least one is visible, and padding is never masked.

    Args:
        keys: uint64 [B], see ``row_keys``.
        lengths: int64 [B], valid tokens n of each row, 2 to ``total``.
        total: T, tokens of a row with its padding, below 2**24.
        prob: share of the valid tokens to mask.

    Returns:
        bool [B, T], True where masked.

    Raises:
        ValueError: a length is out of range.
    """
    check_lengths(lengths, total)
    visible = np.clip((lengths * (1 - prob)).astype(np.int64), 1, lengths - 1)
    valid = np.arange(total) < lengths[:, None]
    return choose(keys, valid, lengths - visible, stream=0)
