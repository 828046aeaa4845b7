"""Labels of single tokens: frames, patches or tokens of text.

They come as a member ``labels.json``: a JSON list of integers, one per token in order (patches row
by row, of text ``<s>`` and ``</s>`` included), or where inputs have a length in time any number of
them, for equally long pieces that cover the whole input. -1: that token has none.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from selfdistill.errors import UserError
from selfdistill.probes.features import UNLABELLED, Features
from selfdistill.probes.splits import choice_samples

TOKEN_LABELS = "labels.json"
TEST_TOKENS = 50_000
"""Most that are taken of the test split."""


class _Chosen:
    """Some rows of an array that may be a map of a file; read when they are asked for."""

    def __init__(self, x: np.ndarray, rows: np.ndarray) -> None:
        self._x, self._rows = x, rows

    @property
    def shape(self) -> tuple[int, int]:
        return len(self._rows), self._x.shape[1]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, chosen: slice | np.ndarray) -> np.ndarray:
        return np.asarray(self._x[self._rows[chosen]], dtype=np.float32)


@dataclass(frozen=True)
class TokenLabels:
    """Labels of the tokens of each sample of a set.

    Attributes:
        keys: of the samples.
        labels: int64 [any] of each.
        by_time: whether they may be other in number than the tokens.
        named: the set, in error messages.
    """

    keys: Sequence[str]
    labels: Sequence[np.ndarray]
    by_time: bool
    named: str

    def of(self, features: Features) -> np.ndarray:
        """Those of the tokens of ``features``, int64 [T1 + T2 + ...].

        Raises:
            UserError: a sample has none, or not one per token where it should; or no token has one.
        """
        assert features.lengths is not None
        told = [
            self._told(int(number), int(length))
            for number, length in zip(features.numbers, features.lengths, strict=True)
        ]
        labels = np.concatenate(told)
        if (labels == UNLABELLED).all():
            raise UserError(f"{self.named}: no token has a label; all are {UNLABELLED}")
        return labels

    def _told(self, number: int, tokens: int) -> np.ndarray:
        labels = self.labels[number]
        if len(labels) == tokens:
            return labels
        if not (self.by_time and len(labels)):
            each = "a list of integers" if self.by_time else "one per token"
            raise UserError(
                f"{self.named}: '{self.keys[number]}' has {len(labels)} labels for {tokens} "
                f"tokens in its .{TOKEN_LABELS}; give {each}, {UNLABELLED} where there is none"
            )
        middle = (np.arange(tokens) + 0.5) * len(labels) / tokens
        return labels[middle.astype(np.int64)]


def only_shared(
    train: np.ndarray, test: np.ndarray
) -> tuple[tuple[np.ndarray, np.ndarray], list[int]]:
    """Labels of the tokens of both splits without the classes that only one of them has, and these.

    Inputs are split as wholes, so that a rare class may well be in a single one. Where less than
    two classes are in both, all labels stay, for ``check_labels`` to refuse.
    """
    mine, yours = (np.setdiff1d(labels, UNLABELLED) for labels in (train, test))
    shared = np.intersect1d(mine, yours)
    if len(shared) < 2:
        return (train, test), []
    first, second = (np.where(np.isin(t, shared), t, UNLABELLED) for t in (train, test))
    return (first, second), np.setxor1d(mine, yours).tolist()


def tokens_to_fit(features: Features, labels: np.ndarray, seed: int) -> Features:
    """Labelled tokens as features of single rows, of many some by ``choice_samples``."""
    rows = np.flatnonzero(labels != UNLABELLED)
    return _tokens(features, labels, rows[choice_samples(labels[rows], seed)])


def tokens_to_test(features: Features, labels: np.ndarray, seed: int) -> Features:
    """The same, of many ``TEST_TOKENS`` by chance alone, which a rare class may be without."""
    rows = np.random.default_rng(seed).permutation(np.flatnonzero(labels != UNLABELLED))
    return _tokens(features, labels, np.sort(rows[:TEST_TOKENS]))


def _tokens(features: Features, labels: np.ndarray, rows: np.ndarray) -> Features:
    assert features.lengths is not None
    groups = np.repeat(np.arange(len(features.lengths)), features.lengths)[rows]
    layers = [_Chosen(x, rows) for x in features.layers]
    return Features(layers, labels[rows], rows, None, groups)  # type: ignore[arg-type]


def read_token_labels(content: bytes | None) -> np.ndarray:
    """int64; empty where there are none that can be used."""
    try:
        given = json.loads(content or b"[]")
        found = np.array(given)
    except (ValueError, RecursionError):
        return np.empty(0, dtype=np.int64)
    usable = isinstance(given, list) and found.ndim == 1 and found.dtype.kind == "i"
    if not usable or (found < UNLABELLED).any():
        return np.empty(0, dtype=np.int64)
    return found.astype(np.int64)
