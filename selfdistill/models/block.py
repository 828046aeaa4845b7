"""One Transformer block for every modality.

Post-norm without gains is the block of data2vec 1.0 audio and text; pre-norm with layer scale and
drop path, and no bias on keys, is the image block (BEiT).
"""

from typing import NamedTuple

import torch
from einops import rearrange
from timm.layers import LayerScale, Mlp
from torch import Tensor, nn
from torch.nn import functional as F

from selfdistill.config import ModelConfig
from selfdistill.models.attention import attend
from selfdistill.models.dropout import Dropout
from selfdistill.models.region import Region
from selfdistill.models.stochastic_depth import Kept
from selfdistill.types import take


class BlockOutput(NamedTuple):
    """What a block gives; training targets are taken from either.

    Attributes:
        x: [B, T, D], the block's output.
        ffn: [B, T, D], its feed-forward output (after layer scale) before dropout and residual,
            without gradient, as only targets are made of it; with drop path of the rows that it was
            computed for.
    """

    x: Tensor
    ffn: Tensor


class Attention(nn.Module):
    """Multi-head self-attention; the rows of ``qkv`` are queries, keys, values, each head-major."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.dropout = config.attention_dropout
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(config.width))
        self.k_bias = nn.Parameter(torch.zeros(config.width)) if config.key_bias else None
        self.v_bias = nn.Parameter(torch.zeros(config.width))
        self.proj = nn.Linear(config.width, config.width)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        places: Tensor | None = None,
        gain: LayerScale | None = None,
    ) -> Tensor:
        """[B, T, D], or at ``places`` [B, N] only: [B, N, D]; times a gain."""
        k_bias = torch.zeros_like(self.q_bias) if self.k_bias is None else self.k_bias
        bias = torch.cat([self.q_bias, k_bias, self.v_bias])
        qkv = F.linear(x, self.qkv.weight, bias)
        q, k, v = rearrange(qkv, "b t (n h d) -> n b h t d", n=3, h=self.heads)
        dropout = self.dropout if self.training else 0.0
        x = rearrange(attend(q, k, v, mask, dropout), "b h t d -> b t (h d)")
        return scaled(self.proj, gain, x if places is None else take(x, places))


class Block(Region):
    """Attention and feed-forward network, each with residual, norm and gain."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, gain = config.width, config.layer_scale
        self.pre_norm = config.norm_order == "pre"
        self.norm1 = nn.LayerNorm(width, eps=config.norm_eps)
        self.attention = Attention(config)
        self.gain1 = LayerScale(width, gain) if gain else None
        self.norm2 = nn.LayerNorm(width, eps=config.norm_eps)
        self.mlp = Mlp(width, config.mlp_width, act_layer=nn.GELU)
        self.activation_dropout = Dropout(config.activation_dropout)
        self.gain2 = LayerScale(width, gain) if gain else None
        self.dropout = Dropout(config.dropout)

    def compute(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        kept: Kept | None = None,
        places: Tensor | None = None,
    ) -> BlockOutput:
        """
        Args:
            x: [B, T, D].
            mask: added to (float) or selecting in (bool, True = attend) the attention logits;
                broadcasts to [B, H, T, T].
            kept: rows that drop path leaves the branches; None: all.
            places: int64 [B, N], the only tokens that are wanted; None: all.
        """
        first, second = (None, None) if kept is None else kept
        if self.pre_norm:
            attended = self._attend(self.norm1(_rows(x, first)), mask, first, places)
            x = _add(x if places is None else take(x, places), attended, first)
            ffn = self._feed_forward(self.norm2(_rows(x, second)))
            return BlockOutput(_add(x, self.dropout(ffn), second), ffn.detach())
        attended = self._attend(_rows(x, first), mask, first, places)
        x = self.norm1(_add(x if places is None else take(x, places), attended, first))
        ffn = self._feed_forward(_rows(x, second))
        return BlockOutput(self.norm2(_add(x, self.dropout(ffn), second)), ffn.detach())

    def _attend(
        self, x: Tensor, mask: Tensor | None, rows: Tensor | None, places: Tensor | None
    ) -> Tensor:
        if rows is not None:
            places = None if places is None else places[rows]
            mask = mask if mask is None or len(mask) == 1 else mask[rows]
        return self.dropout(self.attention(x, mask, places, self.gain1))

    def _feed_forward(self, x: Tensor) -> Tensor:
        hidden, last = self.activation_dropout(self.mlp.act(self.mlp.fc1(x))), self.mlp.fc2
        assert isinstance(last, nn.Linear)
        return scaled(last, self.gain2, hidden)


def scaled(linear: nn.Linear, gain: LayerScale | None, x: Tensor) -> Tensor:
    """A linear layer, times a gain on its channels.

    The gain goes into the weights, which are fewer than the vectors of a batch: these need not be
    multiplied, nor kept for its gradient.
    """
    if gain is None:
        y: Tensor = linear(x)
        return y
    return F.linear(x, gain.gamma[:, None] * linear.weight, gain.gamma * linear.bias)


def _rows(x: Tensor, rows: Tensor | None) -> Tensor:
    return x if rows is None else x.index_select(0, rows)


def _add(x: Tensor, branch: Tensor, rows: Tensor | None) -> Tensor:
    """x [B, T, D] and a branch of some rows, as large on average as if there were all."""
    if rows is None:
        return x + branch
    # as ``alpha`` the factor would be compiled in, for each number of rows anew
    return x.index_add(0, rows, (branch * (len(x) / len(branch))).to(x.dtype))
