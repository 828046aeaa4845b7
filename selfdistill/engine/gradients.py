"""Norms of the gradients of a model's parts."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from selfdistill.engine.sharding import whole
from selfdistill.objective.data2vec import Data2Vec


def part_norms(model: Data2Vec) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """Those of the shared blocks, and those of each modality's encoder and predictor; scalars on
    the device."""
    own = {
        name: {
            "grad_norm_encoder": _norm(model.student.encoders[name].parameters()),
            "grad_norm_predictor": _norm(model.predictors[name].parameters()),
        }
        for name in model.parts
    }
    return {"grad_norm_blocks": _norm(model.student.trunk.parameters())}, own


def _norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    gradients = [p.grad for p in parameters if p.grad is not None]
    return whole(torch.nn.utils.get_total_norm(gradients))
