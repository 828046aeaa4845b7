"""Norms of the gradients of a model's parts."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from selfdistill.engine.sharding import whole
from selfdistill.objective.data2vec import Data2Vec

Norms = tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]
"""Those of the shared blocks, and those of each modality's own parts; scalars on the device."""


def part_norms(model: Data2Vec, factor: Tensor) -> Norms:
    """Those of the blocks, and of the encoder and the predictor of each modality, times a factor.

    Args:
        factor: what clipping has divided them by.
    """
    own = {
        name: {
            "grad_norm_encoder": factor * _norm(model.student.encoders[name].parameters()),
            "grad_norm_predictor": factor * _norm(model.predictors[name].parameters()),
        }
        for name in model.parts
    }
    return {"grad_norm_blocks": factor * _norm(model.student.trunk.parameters())}, own


def _norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    gradients = [p.grad for p in parameters if p.grad is not None]
    return whole(torch.nn.utils.get_total_norm(gradients))
