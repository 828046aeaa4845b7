"""Votes of nearest neighbours, in blocks, so that sets of any size fit into memory."""

from collections.abc import Sequence

import numpy as np

TEMPERATURE = 0.07
TRAIN_BLOCK, TEST_BLOCK = 16_384, 2_048
"""Rows at a time: a block of similarities is 134 MB."""
SPARE = 32
"""Candidates beyond the last neighbour, among which equal ones are put in order."""


def vote(
    x: np.ndarray, labels: np.ndarray, tested: np.ndarray, neighbours: Sequence[int]
) -> dict[int, np.ndarray]:
    """The classes that the nearest rows of x vote for, by number of neighbours.

    Rows are compared by cosine and vote with weight exp(similarity / 0.07). Of equal votes the
    lowest class wins, of equally near rows the first. Where x has fewer rows than ``neighbours``,
    all vote.

    Args:
        x: float [N, D].
        labels: int64 [N].
        tested: float [M, D].

    Returns:
        {k: int64 [M]}.
    """
    classes, members = np.unique(labels, return_inverse=True)
    most = min(max(neighbours), len(x))
    found: dict[int, list[np.ndarray]] = {k: [] for k in neighbours}
    for start in range(0, len(tested), TEST_BLOCK):
        similarity, nearest = _nearest(x, _unit(tested[start : start + TEST_BLOCK]), most)
        weight = np.exp((similarity - 1) / TEMPERATURE)
        rows = np.arange(len(weight))[:, None]
        for k, chosen in found.items():
            votes = np.zeros((len(weight), len(classes)))
            np.add.at(votes, (rows, members[nearest[:, :k]]), weight[:, :k])
            chosen.append(classes[votes.argmax(axis=1)])
    return {k: np.concatenate(chosen) for k, chosen in found.items()}


def _nearest(x: np.ndarray, tested: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Similarity and row of the ``count`` most similar rows, [M, count] each, best first."""
    similarity = np.empty((len(tested), 0), dtype=np.float32)
    nearest = np.empty((len(tested), 0), dtype=np.int64)
    for start in range(0, len(x), TRAIN_BLOCK):
        block = tested @ _unit(x[start : start + TRAIN_BLOCK]).T
        rows = np.broadcast_to(np.arange(start, start + block.shape[1]), block.shape)
        similarity = np.concatenate([similarity, block], axis=1)
        nearest = np.concatenate([nearest, rows], axis=1)
        if similarity.shape[1] > count + SPARE:
            kept = np.argpartition(-similarity, count + SPARE, axis=1)[:, : count + SPARE]
            kept.sort(axis=1)  # so that of equal ones the first come first
            similarity = np.take_along_axis(similarity, kept, axis=1)
            nearest = np.take_along_axis(nearest, kept, axis=1)
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :count]
    ordered = (np.take_along_axis(found, order, axis=1) for found in (similarity, nearest))
    return next(ordered), next(ordered)


def _unit(x: np.ndarray) -> np.ndarray:
    """Rows of length 1; a row of zeros stays."""
    x = np.asarray(x, dtype=np.float32)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.finfo(np.float32).tiny)
