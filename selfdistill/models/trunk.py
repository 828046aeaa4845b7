"""The stack of shared blocks."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from selfdistill.config import ModelConfig
from selfdistill.models.block import Block, BlockOutput
from selfdistill.models.initialise import beit_, bert_, rescale_residuals_


class Trunk(nn.Module):
    """``depth`` blocks and, with pre-norm, a closing LayerNorm.

    ``layers`` hands out block by block, so that a teacher keeps no more than it averages.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.layer_drop = config.layer_drop
        rates = torch.linspace(0, config.drop_path, config.depth, device="cpu").tolist()
        self.blocks = nn.ModuleList(Block(config, rate) for rate in rates)
        pre_norm = config.norm_order == "pre"
        self.norm = nn.LayerNorm(config.width, config.norm_eps) if pre_norm else nn.Identity()
        if config.initializer == "bert":
            self.apply(bert_)
        else:
            self.apply(beit_)
            rescale_residuals_(self.blocks)

    def layers(
        self, x: Tensor, padding: Tensor | None = None, bias: Tensor | None = None
    ) -> Iterator[BlockOutput]:
        """Run the blocks one after the other.

        Args:
            x: [B, T, D].
            padding: bool [B, T], True where no key may be attended to; None: nowhere.
            bias: added to the attention logits, [1, H, T, T] of every block or [depth, H, T, T] of
                one after the other; None: none.
        """
        biases = [None] if bias is None else bias.split(1)
        masks = [attention_mask(padding, part) for part in biases]
        for number, block in enumerate(self.blocks):
            mask = masks[number % len(masks)]
            if self.training and self.layer_drop and float(torch.rand(())) < self.layer_drop:
                continue
            output = block(x, mask)
            yield output
            x = output.x

    def forward(
        self, x: Tensor, padding: Tensor | None = None, bias: Tensor | None = None
    ) -> Tensor:
        """The last block's output after the closing norm, [B, T, D]."""
        for output in self.layers(x, padding, bias):
            x = output.x
        return self.norm(x)


def attention_mask(padding: Tensor | None, bias: Tensor | None) -> Tensor | None:
    """Join key padding [B, T] and logit bias [1, H, T, T] into one mask for
    ``scaled_dot_product_attention``; bool (True = attend) where there is no bias."""
    if padding is None:
        return bias
    allowed = ~padding[:, None, None, :]
    if bias is None:
        return allowed
    return bias.masked_fill(~allowed, float("-inf"))
