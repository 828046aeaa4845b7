"""Initial weights as the original implementations draw them."""

from collections.abc import Iterable

import torch
from timm.layers import trunc_normal_
from torch import nn

from selfdistill.config import ModelConfig
from selfdistill.models.block import Attention, Block


def bert_(module: nn.Module) -> None:
    """normal(0, 0.02) weights and zero biases, for ``nn.Module.apply``; padding rows are zero."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
        if module.padding_idx is not None:
            with torch.no_grad():
                module.weight[module.padding_idx].zero_()


def beit_(module: nn.Module) -> None:
    """normal(0, 0.02) cut at one deviation, zero biases, for ``nn.Module.apply``."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        beit_tensor_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def beit_tensor_(tensor: torch.Tensor) -> None:
    """normal(0, 0.02) cut at one deviation."""
    trunc_normal_(tensor, std=0.02, a=-0.02, b=0.02)


def initialise_blocks_(blocks: nn.ModuleList, config: ModelConfig) -> None:
    """First weights of Transformer blocks, as ``model.initializer`` says.

    Args:
        blocks: of ``Block``.
        config: of the model.
    """
    if config.initializer == "bert":
        blocks.apply(bert_)
    else:
        blocks.apply(beit_)
        _rescale_residuals_(blocks)


def _rescale_residuals_(blocks: Iterable[nn.Module]) -> None:
    """Divide the output projections of block i (from 1) by sqrt(2 i), as BEiT does."""
    for number, block in enumerate(blocks, start=1):
        assert isinstance(block, Block)
        attention = block.attention
        assert isinstance(attention, Attention)
        with torch.no_grad():
            attention.proj.weight.div_((2.0 * number) ** 0.5)
            block.mlp.fc2.weight.div_((2.0 * number) ** 0.5)
