"""The stack of shared blocks."""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from selfdistill.config import ModelConfig
from selfdistill.models.block import Block, BlockOutput
from selfdistill.models.initialise import initialise_blocks_


class Trunk(nn.Module):
    """``depth`` blocks and, with pre-norm, a closing LayerNorm.

    ``layers`` hands out block by block, so that a teacher keeps no more than it averages.

    Attributes:
        chance: decides which blocks are left out; the same ones on all processes, which could not
            share the weights of a block that only some of them run.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.layer_drop = config.layer_drop
        self.chance = torch.Generator("cpu")
        rates = torch.linspace(0, config.drop_path, config.depth, device="cpu").tolist()
        self.blocks = nn.ModuleList(Block(config, rate) for rate in rates)
        pre_norm = config.norm_order == "pre"
        self.norm = nn.LayerNorm(config.width, config.norm_eps) if pre_norm else nn.Identity()
        initialise_blocks_(self.blocks, config)

    def layers(
        self, x: Tensor, padding: Tensor | None = None, biases: Sequence[Tensor] = ()
    ) -> Iterator[BlockOutput]:
        """``run_blocks`` over the blocks."""
        layer_drop = self.layer_drop if self.training else 0.0
        return run_blocks(self.blocks, x, padding, biases, layer_drop, self.chance)

    def forward(
        self, x: Tensor, padding: Tensor | None = None, biases: Sequence[Tensor] = ()
    ) -> Tensor:
        """The last block's output after the closing norm, [B, T, D]."""
        for output in self.layers(x, padding, biases):
            x = output.x
        return self.norm(x)


def run_blocks(
    blocks: Iterable[nn.Module],
    x: Tensor,
    padding: Tensor | None = None,
    biases: Sequence[Tensor] = (),
    layer_drop: float = 0.0,
    chance: torch.Generator | None = None,
) -> Iterator[BlockOutput]:
    """Run blocks one after the other, handing out each one's output.

    Args:
        blocks: of ``Block``.
        x: [B, T, D].
        padding: bool [B, T], True where no key may be attended to; None: nowhere.
        biases: added to the attention logits, [1 or B, H, T, T]: one for every block, or one for
            each; empty: none.
        layer_drop: chance of a block to be left out.
        chance: decides it; None: torch's global generator.
    """
    shared = attention_mask(padding, biases[0] if biases else None) if len(biases) < 2 else None
    for number, block in enumerate(blocks):
        mask = attention_mask(padding, biases[number]) if len(biases) > 1 else shared
        if layer_drop and float(torch.rand((), generator=chance)) < layer_drop:
            continue
        output = block(x, mask)
        yield output
        x = output.x


def attention_mask(padding: Tensor | None, bias: Tensor | None) -> Tensor | None:
    """Join key padding [B, T] and logit bias [1 or B, H, T, T] into one mask for
    ``scaled_dot_product_attention``; bool (True = attend) where there is no bias."""
    if padding is None:
        return bias
    allowed = ~padding[:, None, None, :]
    if bias is None:
        return allowed
    return bias.masked_fill(~allowed, float("-inf"))
