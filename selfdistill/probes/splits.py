"""Parts of a labelled set, in the same shares per class."""

from collections.abc import Callable

import numpy as np

VALIDATION_SHARE = 0.2
CHOICE_SAMPLES = 20_000
LEAST_PER_CLASS = 25
"""Of a class in the choices, where it has so many."""


def choice_samples(labels: np.ndarray, seed: int) -> np.ndarray:
    """Indices (int64, ascending) of the samples that choices are made on, in the same
    shares per class."""
    if len(labels) <= CHOICE_SAMPLES:
        return np.arange(len(labels))
    share = CHOICE_SAMPLES / len(labels)

    def count(members: int) -> int:
        return max(round(share * members), min(LEAST_PER_CLASS, members))

    return np.sort(np.concatenate(_per_class(labels, seed, count)))


def validation_split(
    labels: np.ndarray, seed: int, share: float = VALIDATION_SHARE
) -> tuple[np.ndarray, np.ndarray]:
    """Indices (int64, ascending) to fit on and to validate on, in the same shares per class.

    A class of two samples or more is in both parts; the only sample of a class is fitted on.
    """

    def count(members: int) -> int:
        return min(max(1, round(share * members)), members - 1)

    validation = np.sort(np.concatenate(_per_class(labels, seed, count)))
    return np.setdiff1d(np.arange(len(labels)), validation), validation


def _per_class(labels: np.ndarray, seed: int, count: Callable[[int], int]) -> list[np.ndarray]:
    """Of each class ``count(its samples)`` indices by chance."""
    rng = np.random.default_rng(seed)
    found = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        found.append(rng.permutation(members)[: count(len(members))])
    return found


def group_split(groups: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The same shares of whole groups (int64 [N], one number each), whatever their classes."""
    _, held = validation_split(np.zeros(len(np.unique(groups)), dtype=np.int64), seed)
    is_held = np.isin(groups, np.unique(groups)[held])
    return np.flatnonzero(~is_held), np.flatnonzero(is_held)
