"""The stack of shared blocks."""

from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from selfdistill.config import ModelConfig
from selfdistill.models.attention import LEAST
from selfdistill.models.block import Block, BlockOutput
from selfdistill.models.initialise import initialise_blocks_
from selfdistill.models.stochastic_depth import StochasticDepth


class Trunk(nn.Module):
    """``depth`` blocks and, with pre-norm, a closing LayerNorm.

    ``layers`` hands out block by block, so that a teacher keeps no more than it averages; ``norm``
    is left to the caller.

    Attributes:
        chance: what training leaves out.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.chance = StochasticDepth(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        pre_norm = config.norm_order == "pre"
        self.norm = nn.LayerNorm(config.width, config.norm_eps) if pre_norm else nn.Identity()
        initialise_blocks_(self.blocks, config)

    def layers(
        self,
        x: Tensor,
        padding: Tensor | None = None,
        biases: Sequence[Tensor] = (),
        places: Tensor | None = None,
    ) -> Iterator[BlockOutput]:
        """``run_blocks`` over the blocks."""
        chance = self.chance if self.training else None
        return run_blocks(self.blocks, x, padding, biases, chance, places)


def run_blocks(
    blocks: nn.ModuleList,
    x: Tensor,
    padding: Tensor | None = None,
    biases: Sequence[Tensor] = (),
    chance: StochasticDepth | None = None,
    places: Tensor | None = None,
) -> Iterator[BlockOutput]:
    """Run blocks one after the other, handing out each one's output.

    Args:
        blocks: of ``Block``.
        x: [B, T, D].
        padding: bool [B, T], True where no key may be attended to; None: nowhere.
        biases: added to the attention logits, [1 or B, H, T, T]: one for every block, or one for
            each; empty: none.
        chance: what is left out; None: nothing.
        places: int64 [B, N], the only tokens that the last block, of those that are run, has to
            give; None: all.
    """
    shared = attention_mask(padding, biases[0] if biases else None) if len(biases) < 2 else None
    numbers = [*range(len(blocks))] if chance is None else chance.run()
    for number in numbers:
        mask = attention_mask(padding, biases[number]) if len(biases) > 1 else shared
        kept = None if chance is None else chance.kept(number, len(x), x.device)
        output = blocks[number](x, mask, kept, places if number == numbers[-1] else None)
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
    return bias.masked_fill(~allowed, LEAST)
