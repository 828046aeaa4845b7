"""Labels of single tokens: frames, patches or words.

They come as a member ``labels.json``: a JSON list of integers, one per token in order (patches row
by row), or where inputs have a length in time any number of them, for equally long pieces that
cover the whole input. -1: that token has none.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from selfdistill.errors import UserError
from selfdistill.probes.features import UNLABELLED, Features

TOKEN_LABELS = "labels.json"
TRAIN_TOKENS, TEST_TOKENS = 20_000, 50_000
"""Most that are taken of each split, by chance."""


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

    def labelled(self, features: Features, most: int, seed: int) -> Features:
        """Up to ``most`` of the labelled tokens of ``features``, as features of single rows.

        Raises:
            UserError: a sample has none, or not one per token where it should; or no token has one.
        """
        assert features.lengths is not None
        told = [
            self._told(int(number), int(length))
            for number, length in zip(features.numbers, features.lengths, strict=True)
        ]
        labels = np.concatenate(told)
        rows = np.flatnonzero(labels != UNLABELLED)
        if not len(rows):
            raise UserError(f"{self.named}: no token has a label; all are {UNLABELLED}")
        rows = np.sort(np.random.default_rng(seed).permutation(rows)[:most])
        groups = np.repeat(np.arange(len(told)), features.lengths)[rows]
        layers = [_Chosen(x, rows) for x in features.layers]
        return Features(layers, labels[rows], rows, None, groups)  # type: ignore[arg-type]

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
