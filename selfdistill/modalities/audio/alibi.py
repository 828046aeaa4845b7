"""Attention that fades with distance (ALiBi, arXiv 2108.12409, in both directions of time)."""

import math

import torch
from torch import Tensor, nn

from selfdistill.modalities.audio.config import AudioEncoderConfig


def slopes(heads: int) -> list[float]:
    """How fast the attention of each head fades.

    A geometric sequence down to 2^-8 where the number of heads is a power of two; else that of the
    next lower power, followed by every second one of the next higher.
    """
    power = 2 ** int(math.log2(heads))
    found = [2.0 ** (-8 * (head + 1) / power) for head in range(power)]
    if power < heads:
        found += slopes(2 * power)[::2][: heads - power]
    return found


class Alibi(nn.Module):
    """The bias -slope |i - j| on the logits, times a learned scale that is not below 0 (data2vec
    2.0).

    Args:
        config: whether heads and layers have scales of their own.
        heads: H.
        depth: number of blocks.
    """

    slopes: Tensor

    def __init__(self, config: AudioEncoderConfig, heads: int, depth: int) -> None:
        super().__init__()
        layers = depth if config.alibi_per_layer else 1
        self.scale = nn.Parameter(
            torch.ones(layers, 1, heads if config.alibi_per_head else 1, 1, 1)
        )
        self.register_buffer("slopes", torch.tensor(slopes(heads)), persistent=False)

    def forward(self, places: Tensor) -> list[Tensor]:
        """int64 [B, V] to one bias [B, H, V, V] for all blocks, or one for each."""
        distance = (places[:, :, None] - places[:, None, :]).abs()  # [B, V, V]
        bias = -self.slopes[:, None, None] * distance[:, None]
        return [scale * bias for scale in self.scale.clamp(min=0)]
