"""Token features of one layer, batch by batch from wherever they are kept."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from selfdistill.probes.features import Features

CPU = torch.device("cpu")
MOMENT_SAMPLES = 1_000
"""Samples that tell mean and deviation of the features; only as many are read for it."""


class LayerTokens:
    """Standardised tokens of samples, padded to a batch.

    Args:
        features: of tokens.
        layer: which one.
        like: whose mean and deviation are taken; None: its own, of some samples by chance.
        seed: of these.
        device: of the batches.
    """

    def __init__(
        self,
        features: Features,
        layer: int,
        like: "LayerTokens | None" = None,
        seed: int = 0,
        device: torch.device = CPU,
    ) -> None:
        self.device: torch.device = like.device if like else device
        assert features.lengths is not None
        self._x = features.layers[layer]
        self.lengths = features.lengths
        self._ends = np.cumsum(self.lengths)
        self.width = self._x.shape[1]
        self._mean, self._std = like.moments if like else self._measured(seed)

    @property
    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and deviation that the tokens are standardised by, float32 [D]."""
        return self._mean, self._std

    def _measured(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        count = min(MOMENT_SAMPLES, len(self.lengths))
        chosen = np.sort(np.random.default_rng(seed).permutation(len(self.lengths))[:count])
        some = np.concatenate([self._of(i) for i in chosen]).astype(np.float64)
        return some.mean(axis=0).astype(np.float32), (some.std(axis=0) + 1e-6).astype(np.float32)

    def __len__(self) -> int:
        return len(self.lengths)

    def _of(self, sample: int) -> np.ndarray:
        end = int(self._ends[sample])
        return self._x[end - int(self.lengths[sample]) : end]

    def batch(self, samples: np.ndarray) -> tuple[Tensor, Tensor]:
        """Tokens float32 [B, T, D], 0 where there are none, and bool [B, T], True there."""
        lengths = self.lengths[samples]
        padding = np.arange(int(lengths.max())) >= lengths[:, None]
        places = (self._ends[samples] - lengths)[:, None] + np.arange(padding.shape[1])
        x = self._x[np.where(padding, 0, places)].astype(np.float32)
        x -= self._mean
        x /= self._std
        x[padding] = 0
        return torch.from_numpy(x).to(self.device), torch.from_numpy(padding).to(self.device)


def passes(samples: np.ndarray, size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """One pass over samples in batches, in an order drawn by ``rng``."""
    order = rng.permutation(samples)
    for start in range(0, len(order), size):
        yield order[start : start + size]
