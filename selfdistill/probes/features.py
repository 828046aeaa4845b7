"""Frozen features of labelled shards: one vector per sample and layer."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from selfdistill.data.pipeline import InputPipeline
from selfdistill.data.plain import plain_batches
from selfdistill.data.shards import ShardSet
from selfdistill.errors import HealthError
from selfdistill.modalities.backbone import Backbone

UNLABELLED = -1
BASELINE_BATCH = 32


@dataclass(frozen=True)
class Features:
    """Features of a labelled set.

    Attributes:
        layers: float32 [N, D] per layer; 0 is the input of the blocks, i the output of block i.
            The raw input has one.
        labels: int64 [N]; ``UNLABELLED`` where a sample has no label.
    """

    layers: list[np.ndarray]
    labels: np.ndarray


def encoder_features(
    backbone: Backbone, shards: ShardSet, pipeline: InputPipeline, batch_size: int
) -> Features:
    """Every layer of ``backbone``, averaged over the valid tokens of each sample.

    It runs in eval mode, without gradients, on its device and in the precision of its parameters,
    and has its modes back afterwards.

    Raises:
        HealthError: a feature is not finite.
    """
    device = next(backbone.parameters()).device
    layers: list[list[np.ndarray]] = []
    labels: list[int | None] = []
    with _frozen(backbone):
        for batch, _, found in plain_batches(shards, pipeline, batch_size):
            batch = batch.to(device)
            states, padding = backbone.hidden_states(batch.inputs, batch.lengths)
            means = [mean_over_valid(state, padding).cpu().numpy() for state in states]
            layers = layers or [[] for _ in means]
            for collected, mean in zip(layers, means, strict=True):
                collected.append(mean)
            labels += found
    joined = [np.concatenate(collected) for collected in layers]
    for index, layer in enumerate(joined):
        if not np.isfinite(layer).all():
            raise HealthError(f"probes: the encoder's features at layer {index} are not finite")
    return Features(joined, _as_array(labels))


def baseline_features(shards: ShardSet, pipeline: InputPipeline) -> Features:
    """The pipeline's features of the raw input, as a single layer."""
    rows: list[np.ndarray] = []
    labels: list[int | None] = []
    for _, examples, found in plain_batches(shards, pipeline, BASELINE_BATCH):
        rows += [pipeline.baseline(example) for example in examples]
        labels += found
    return Features([np.stack(rows).astype(np.float32, copy=False)], _as_array(labels))


def mean_over_valid(x: Tensor, padding: Tensor | None) -> Tensor:
    """Mean of x [B, T, D] over the tokens that ``padding`` [B, T] does not name: float32 [B, D]."""
    x = x.float()
    if padding is None:
        return x.mean(dim=1)
    # padded positions may hold anything, NaN included, so they are replaced, not multiplied by 0
    total = x.masked_fill(padding[..., None], 0.0).sum(dim=1)
    return total / (~padding).sum(dim=1, keepdim=True).clamp_min(1)


def _as_array(labels: Sequence[int | None]) -> np.ndarray:
    return np.array([UNLABELLED if label is None else label for label in labels], dtype=np.int64)


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; every sub-module gets its own mode back."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, training in modes:
            part.training = training
