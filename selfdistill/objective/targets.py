"""Targets: the average of the teacher's top K normalised layers.

Source: data2vec 1.0 (arXiv 2202.03555), section 3.3; the order of the normalisations is fairseq's.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from selfdistill.config import ObjectiveConfig
from selfdistill.models.block import BlockOutput

EPS = 1e-5


def layer_indices(objective: ObjectiveConfig, depth: int) -> list[int]:
    """The 0-based blocks whose outputs are averaged."""
    if objective.target_layers:
        return list(objective.target_layers)
    return list(range(depth - objective.average_top_k_layers, depth))


def average_layers(
    layers: Iterable[BlockOutput],
    objective: ObjectiveConfig,
    depth: int,
    padding: Tensor | None,
) -> Tensor:
    """Run through the teacher's ``layers``, keeping their normalised sum only.

    Args:
        layers: the blocks' outputs [B, T, D], first to last.
        objective: which layers, taken from where, normalised how.
        depth: number of blocks.
        padding: bool [B, T], True for tokens that must not enter statistics over time or batch;
            None: all enter.

    Returns:
        float32 [B, T, D].
    """
    wanted = set(layer_indices(objective, depth))
    last = max(wanted)
    total: Tensor | None = None
    for index, output in enumerate(layers):
        if index in wanted:
            layer = output.ffn if objective.target_from == "ffn" else output.x
            layer = normalise(layer.float(), objective.layer_norms, padding)
            if total is None:
                total = torch.zeros_like(layer)  # the layer itself may be the next block's input
            total += layer
        if index == last:
            break
    assert total is not None
    total /= len(wanted)
    return normalise(total, objective.target_norms, padding)


def normalise(x: Tensor, kinds: Sequence[str], padding: Tensor | None) -> Tensor:
    """Normalise x [B, T, D] without learned gains, one kind after the other.

    ``layer``: each vector over its channels. ``instance``: each channel of each sample over time.
    ``batch``: each channel over all samples and times. Variances are biased, eps 1e-5.
    """
    for kind in kinds:
        if kind == "layer":
            x = F.layer_norm(x, x.shape[-1:], eps=EPS)
        else:
            x = _standardise(x, (1,) if kind == "instance" else (0, 1), padding)
    return x


def _standardise(x: Tensor, dims: tuple[int, ...], padding: Tensor | None) -> Tensor:
    if padding is None:
        variance, mean = x.var(dims, correction=0, keepdim=True), x.mean(dims, keepdim=True)
    else:
        valid = (~padding)[..., None].to(x.dtype)  # [B, T, 1]
        count = valid.sum(dims, keepdim=True)
        mean = (x * valid).sum(dims, keepdim=True) / count
        variance = ((x - mean).square() * valid).sum(dims, keepdim=True) / count
    return (x - mean) * (variance + EPS).rsqrt()
