"""Token features of one layer, batch by batch from wherever they are kept, and training on them."""

import copy
import math
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from selfdistill.probes.features import Features

Model = TypeVar("Model", bound=nn.Module)

CPU = torch.device("cpu")
STEPS = 1_000
"""Of a training, about."""
MIN_PASSES = 3
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


def best_pass(
    model: Model,
    optimizer: torch.optim.Optimizer,
    loss: Callable[[np.ndarray], Tensor],
    error: Callable[[], float],
    samples: np.ndarray,
    size: int,
    most: int,
    seed: int,
) -> tuple[float, Model]:
    """Train a model in passes over samples, about ``STEPS`` steps in all.

    Args:
        loss: of the model on some of the samples.
        error: of the model on others, by which passes are compared.
        samples: int64 [n].
        size: samples of a step.
        most: passes.
        seed: of the order.

    Returns:
        The lowest error, and the model as it was after that pass.
    """
    rng, best = np.random.default_rng(seed), (math.inf, model)
    passes = STEPS // math.ceil(len(samples) / size)
    for _ in range(min(max(passes, MIN_PASSES), most)):
        order = rng.permutation(samples)
        for start in range(0, len(order), size):
            optimizer.zero_grad()
            loss(order[start : start + size]).backward()
            optimizer.step()
        found = error()
        if found < best[0]:
            best = (found, copy.deepcopy(model))
    return best
