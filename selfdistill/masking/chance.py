"""Random numbers that are a function of a key and a counter, and choices made with them."""

import numpy as np

_GAMMA = np.uint64(0x9E3779B97F4A7C15)  # splitmix64's increment: odd, bits of the golden ratio
_POSITION_BITS = np.uint64(2**24 - 1)
_LAST_TICKET = np.uint64(2**64 - 1)
_CLONE_STREAM = 2**32  # beyond the streams that any generator draws from


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


def clone_keys(keys: np.ndarray, num_masks: int) -> np.ndarray:
    """The keys of several masks per sample.

    Args:
        keys: uint64 [B], one per sample, see ``row_keys``.
        num_masks: M, masks of each sample, at least 1.

    Returns:
        uint64 [B * M]: rows i * M to i * M + M - 1 belong to sample i. The first of them is the
        sample's own key, and none depends on M.
    """
    others = _bits(keys, num_masks - 1, _CLONE_STREAM)  # [B, M - 1]
    return np.column_stack([keys, others]).ravel()


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


def choose(
    keys: np.ndarray,
    candidates: np.ndarray,
    counts: np.ndarray,
    stream: int,
    preferred: np.ndarray | None = None,
) -> np.ndarray:
    """Random positions of each row, drawn without replacement.

    Every position draws a ticket and the smallest tickets win. The position fills the low bits,
    so no two tickets are equal and the count is exact.

    Args:
        keys: uint64 [B].
        candidates: bool [B, n], the positions to draw from; n is below 2**24.
        counts: int64 [B], positions to draw, from 1 to the number of candidates.
        stream: as in ``uniform``.
        preferred: bool [B, n], candidates that win before all others; None: none do.

    Returns:
        bool [B, n].
    """
    rows, n = candidates.shape
    tickets = _bits(keys, n, stream)
    if preferred is not None:
        tickets >>= np.uint64(1)
        tickets |= (~preferred).astype(np.uint64) << np.uint64(63)
    tickets &= ~_POSITION_BITS
    tickets |= np.arange(n, dtype=np.uint64)
    tickets = np.where(candidates, tickets, _LAST_TICKET)
    last = np.sort(tickets, axis=1)[np.arange(rows), counts - 1]  # [B]
    return tickets <= last[:, None]
