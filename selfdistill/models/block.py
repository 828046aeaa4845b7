"""One Transformer block for every modality.

Post-norm without gains is the block of data2vec 1.0 audio and text; pre-norm with layer scale and
drop path, and no bias on keys, is the image block (BEiT).
"""

from typing import NamedTuple

import torch
from einops import rearrange
from timm.layers import DropPath, LayerScale, Mlp
from torch import Tensor, nn
from torch.nn import functional as F

from selfdistill.config import ModelConfig
from selfdistill.models.region import Region


class BlockOutput(NamedTuple):
    """What a block gives; training targets are taken from either.

    Attributes:
        x: [B, T, D], the block's output.
        ffn: [B, T, D], its feed-forward output (after layer scale) before dropout and residual.
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

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        k_bias = torch.zeros_like(self.q_bias) if self.k_bias is None else self.k_bias
        bias = torch.cat([self.q_bias, k_bias, self.v_bias])
        qkv = F.linear(x, self.qkv.weight, bias)
        q, k, v = rearrange(qkv, "b t (n h d) -> n b h t d", n=3, h=self.heads)
        dropout = self.dropout if self.training else 0.0
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        return self.proj(rearrange(x, "b h t d -> b t (h d)"))


class Block(Region):
    """Attention and feed-forward network, each with residual, norm, gain and drop path.

    Args:
        config: of the whole trunk.
        drop_path: chance of this block's branches to be left out for a sample.
    """

    def __init__(self, config: ModelConfig, drop_path: float) -> None:
        super().__init__()
        width, gain = config.width, config.layer_scale
        self.pre_norm = config.norm_order == "pre"
        self.norm1 = nn.LayerNorm(width, eps=config.norm_eps)
        self.attention = Attention(config)
        self.gain1 = LayerScale(width, gain) if gain else nn.Identity()
        self.norm2 = nn.LayerNorm(width, eps=config.norm_eps)
        hidden = round(width * config.mlp_ratio)
        self.mlp = Mlp(width, hidden, act_layer=nn.GELU, drop=(config.activation_dropout, 0.0))
        self.gain2 = LayerScale(width, gain) if gain else nn.Identity()
        self.dropout = nn.Dropout(config.dropout)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def compute(self, x: Tensor, mask: Tensor | None = None) -> BlockOutput:
        """
        Args:
            x: [B, T, D].
            mask: added to (float) or selecting in (bool, True = attend) the attention logits;
                broadcasts to [B, H, T, T].
        """
        if self.pre_norm:
            x = x + self.drop_path(self._attend(self.norm1(x), mask))
            ffn = self.gain2(self.mlp(self.norm2(x)))
            return BlockOutput(x + self.drop_path(self.dropout(ffn)), ffn)
        x = self.norm1(x + self.drop_path(self._attend(x, mask)))
        ffn = self.gain2(self.mlp(x))
        return BlockOutput(self.norm2(x + self.drop_path(self.dropout(ffn))), ffn)

    def _attend(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return self.dropout(self.gain1(self.attention(x, mask)))
