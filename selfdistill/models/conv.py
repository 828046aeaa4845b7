"""Convolutions over samples in time, and over a sequence or a grid of tokens: the feature encoder
and the positions of audio, decoders of every kind."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from selfdistill.models.region import Region


def strided_conv(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """Convolution over time without padding, as matrix products.

    The input is seen as blocks of ``stride`` samples, of which a kernel covers one after the other:
    each is a product with its part of the kernel, on a view of the input. Convolution kernels want
    channels before time instead, and on CPUs take twice as long for the backward pass.

    Args:
        x: [B, L, C], contiguous.
        weight: [C', C, kernel], as ``nn.Conv1d`` keeps it.
        bias: [C'], or none.
        stride: of the kernel.

    Returns:
        [B, (L - kernel) // stride + 1, C'].
    """
    length, channels, kernel = x.shape[1], x.shape[2], weight.shape[2]
    steps = (length - kernel) // stride + 1
    covered = -(-kernel // stride)  # blocks under a kernel, the last one perhaps in part
    used = (steps + covered - 1) * stride
    x = F.pad(x, (0, 0, 0, used - length)) if used > length else x[:, :used]
    blocks = rearrange(x, "b (t s) c -> b t (s c)", s=stride)
    taps = rearrange(weight, "o c k -> (k c) o").split(stride * channels)
    y: Tensor | None = bias
    for number, part in enumerate(taps):
        under = blocks[:, number : number + steps, : len(part)]
        part = part.expand(len(x), -1, -1)
        y = torch.bmm(under, part) if y is None else torch.baddbmm(y, under, part)
    assert y is not None
    return y


class ConvStack(Region):
    """Grouped convolutions that keep the length, each followed by LayerNorm without gain and GELU.

    Args:
        widths: channels before the first layer and after each.
        kernel: width of the kernels; what an even one gives too much is cut off at the end.
        groups: of the convolutions.
        residual: whether a layer that keeps the number of channels adds its input.
        grid: rows and columns of tokens for convolutions in two dimensions; None: one dimension,
            any length.
    """

    def __init__(
        self,
        widths: Sequence[int],
        kernel: int,
        groups: int,
        residual: bool,
        grid: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.residual = residual
        self.grid = grid
        layer = nn.Conv1d if grid is None else nn.Conv2d
        self.convs = nn.ModuleList(
            layer(inner, outer, kernel, padding=kernel // 2, groups=groups)
            for inner, outer in pairwise(widths)
        )

    def compute(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """[B, T, D] to [B, T, D'].

        Args:
            x: the tokens.
            padding: bool [B, T], True where a token is cleared before each convolution, so that a
                row's result does not depend on what it is batched with.
        """
        for conv in self.convs:
            if padding is not None:
                x = x.masked_fill(padding[..., None], 0.0)
            y = self._convolve(conv, x)
            y = F.gelu(F.layer_norm(y, y.shape[-1:]))
            x = x + y if self.residual and x.shape[-1] == y.shape[-1] else y
        return x

    def _convolve(self, conv: nn.Module, x: Tensor) -> Tensor:
        if self.grid is None:
            y: Tensor = conv(x.mT).mT[:, : x.shape[1]]
            return y
        height, width = self.grid
        plane = conv(rearrange(x, "b (h w) d -> b d h w", h=height))[..., :height, :width]
        return rearrange(plane, "b d h w -> b (h w) d")
