"""Convolutions over a sequence or a grid of tokens: positions of audio, decoders of every kind."""

from collections.abc import Sequence
from itertools import pairwise

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from selfdistill.models.region import Region


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
