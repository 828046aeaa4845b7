"""Convolutions over samples in time, and over a sequence or a grid of tokens: the feature encoder
and the positions of audio, decoders of every kind."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from selfdistill.models.region import Region


def strided_conv(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """Convolution over time without padding, as matrix products.

    Convolution kernels want channels before time, and on CPUs take twice as long for the backward
    pass.

    Args:
        x: [B, L, C]; copied if it is not contiguous.
        weight: [C', C, kernel], as ``nn.Conv1d`` keeps it.
        bias: [C'], or none.
        stride: of the kernel.

    Returns:
        [B, (L - kernel) // stride + 1, C'].
    """
    if room := max(stride - weight.shape[2], 0):  # between the kernels
        x, weight = F.pad(x, (0, 0, 0, room)), F.pad(weight, (0, room))
    taps = rearrange(weight, "o c k -> (k c) o")
    if torch.is_autocast_enabled(x.device.type):
        half = torch.get_autocast_dtype(x.device.type)
        x, taps = x.to(half), taps.to(half)
    y: Tensor = _StridedConv.apply(x, taps, stride)
    return y if bias is None else y + bias


class _StridedConv(Function):
    """A kernel is cut into parts as long as a stride: each is a product on a view of the input, in
    which a row is what lies under the part at one step. By itself autograd would make a copy of the
    input's gradient for each."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, taps: Tensor, stride: int) -> Tensor:
        """[B, L, C] and [kernel C, C'] to [B, steps, C']; no kernel is shorter than the stride."""
        ctx.save_for_backward(x, taps)
        ctx.stride = stride
        first, *others = _parts(x, taps, stride)
        y = torch.bmm(*first)
        # compiled by torch 2.11, a y that changes in place would get no gradient
        add = torch.baddbmm if torch.compiler.is_compiling() else Tensor.baddbmm_
        for under, part in others:
            y = add(y, under, part)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, along: Tensor) -> tuple[Tensor | None, Tensor, None]:
        x, taps = ctx.saved_tensors
        of_taps = [_summed_products(under, along) for under, _ in _parts(x, taps, ctx.stride)]
        if not ctx.needs_input_grad[0]:  # the waveform
            return None, torch.cat(of_taps), None
        of_x = x.new_empty(x.shape)  # contiguous, whatever x is: its parts must be views
        of_x[:, along.shape[1] * ctx.stride :] = 0  # the first part writes all before it
        for number, (under, part) in enumerate(_parts(of_x, taps, ctx.stride)):
            under.baddbmm_(along, part.mT, beta=min(number, 1))
        return of_x, torch.cat(of_taps), None


def _parts(x: Tensor, taps: Tensor, stride: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Each part of the kernel [B, up to s C, C'], and what lies under it [B, steps, up to s C]."""
    channels = x.shape[2]
    kernel, width = len(taps) // channels, stride * channels
    steps, end = (x.shape[1] - kernel) // stride + 1, 0
    for part in taps.split(width):
        end += len(part) // channels
        # a stride ends where the part does; a part that is shorter takes the end of it
        strides = x[:, end - stride :][:, : steps * stride].unflatten(1, (steps, stride))
        yield strides.flatten(2)[..., width - len(part) :], part.expand(len(x), -1, -1)


def _summed_products(left: Tensor, right: Tensor) -> Tensor:
    """left' right, [B, T, C] and [B, T, C'] to [C, C'], summed over the samples."""
    # on a CPU bmm would first copy what is transposed, in bf16 for three times as long as it then
    # multiplies; compiled, there would be one loop for each number of samples
    if left.device.type == "cpu" and left.element_size() < 4 and not torch.compiler.is_compiling():
        return torch.stack([x.T @ y for x, y in zip(left, right, strict=True)]).sum(0)
    return torch.bmm(left.mT, right).sum(0)


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
