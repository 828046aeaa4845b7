"""Convolutional feature encoder and convolutional positions on the waveform.

Source: data2vec 1.0 (arXiv 2202.03555), section 4.2; data2vec 2.0 (arXiv 2212.07525) adds ALiBi.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from selfdistill.config import RunConfig
from selfdistill.modalities.audio.alibi import Alibi
from selfdistill.modalities.audio.config import AudioEncoderConfig
from selfdistill.modalities.base import FeatureEncoder
from selfdistill.models.conv import ConvStack, strided_conv
from selfdistill.models.dropout import Dropout
from selfdistill.models.region import Region
from selfdistill.types import Masks, Tokens

Count = TypeVar("Count", int, Tensor)


def frame_count(length: Count, conv_layers: Sequence[Sequence[int]]) -> Count:
    """Frames that ``length`` samples give; less than 1 when they are too few for one."""
    for _, kernel, stride in conv_layers:
        length = (length - kernel) // stride + 1
    return length


def receptive_field(conv_layers: Sequence[Sequence[int]]) -> int:
    """Samples that one frame looks at."""
    width = 1
    for _, kernel, stride in reversed(conv_layers):
        width = (width - 1) * stride + kernel
    return width


class ConvLayer(Region):
    """Convolution in time without padding, LayerNorm over channels, GELU; x is [B, L, C]."""

    def __init__(self, inner: int, outer: int, kernel: int, stride: int, bias: bool) -> None:
        super().__init__()
        self.conv = nn.Conv1d(inner, outer, kernel, stride, bias=bias)
        self.norm = nn.LayerNorm(outer)
        nn.init.kaiming_normal_(self.conv.weight)

    def compute(self, x: Tensor) -> Tensor:
        (stride,) = self.conv.stride
        x = strided_conv(x, self.conv.weight, self.conv.bias, stride)
        return F.gelu(self.norm(x))


class LocalFeatures(nn.Module):
    """The convolutional stack and the projection to the blocks' width."""

    def __init__(self, config: AudioEncoderConfig, width: int) -> None:
        super().__init__()
        channels = [1, *(layer[0] for layer in config.conv_layers)]
        self.convs = nn.Sequential(
            *(
                ConvLayer(inner, outer, kernel, stride, config.conv_bias)
                for inner, (outer, kernel, stride) in zip(
                    channels, config.conv_layers, strict=False
                )
            )
        )
        self.norm = nn.LayerNorm(channels[-1])
        self.projection = nn.Linear(channels[-1], width)

    def forward(self, waveform: Tensor) -> Tensor:
        """float [B, L] to [B, T, D]."""
        return self.projection(self.norm(self.convs(waveform[..., None])))


class AudioEncoder(FeatureEncoder):
    """Waveform float [B, L] to normed frames with positions.

    Positions are grouped convolutions over time whose output is added to the features.
    """

    local: LocalFeatures

    def __init__(self, config: RunConfig) -> None:
        super().__init__()
        encoder, width = config.encoder, config.model.width
        self.compat = config.compat
        self.conv_layers = [list(layer) for layer in encoder.conv_layers]
        self.local = LocalFeatures(encoder, width)
        self.input_dropout = Dropout(encoder.input_dropout)
        is_dense = config.strategy == "dense"
        self.mask_token = nn.Parameter(torch.rand(width)) if is_dense else None
        widths = [width] * (encoder.position_depth + 1)
        kernel, groups = encoder.position_kernel, encoder.position_groups
        self.positions = ConvStack(widths, kernel, groups, residual=False)
        self.norm = nn.LayerNorm(width, eps=config.model.norm_eps)
        self.dropout = Dropout(config.model.dropout)
        depth = encoder.prenet_depth + config.model.depth
        self.alibi = Alibi(encoder, config.model.heads, depth) if encoder.alibi else None

    @property
    def mask_vector(self) -> Tensor:
        """Frames that are dropped are silent to the positions of the others."""
        if self.mask_token is None:
            return self.local.projection.weight.new_zeros(())
        return self.mask_token

    def embed(self, inputs: Tensor, lengths: Tensor | None) -> Tokens:
        x = self.local(inputs)
        if lengths is None:
            return Tokens(x)
        frames = frame_count(lengths, self.conv_layers)
        return Tokens(x, torch.arange(x.shape[1], device=x.device) >= frames[:, None])

    def fill(self, tokens: Tokens, masks: Masks) -> Tokens:
        return super().fill(replace(tokens, x=self.input_dropout(tokens.x)), masks)

    def keep(self, tokens: Tokens, masks: Masks) -> Tokens:
        tokens = self._clear(replace(tokens, x=self.input_dropout(tokens.x)))
        kept = masks.keep(tokens)
        positions = self._positions(super().fill(tokens, masks))  # of the masked sequence
        return replace(kept, x=kept.x + masks.keep(positions).x)

    def locate(self, tokens: Tokens) -> Tokens:
        tokens = self._clear(tokens)
        return replace(tokens, x=tokens.x + self._positions(tokens).x)

    def enter(self, tokens: Tokens) -> Tokens:
        return replace(tokens, x=self.dropout(self.norm(tokens.x)))

    def attention_biases(self, places: Tensor) -> Sequence[Tensor]:
        return () if self.alibi is None else self.alibi(places)

    def _clear(self, tokens: Tokens) -> Tokens:
        if tokens.padding is None or self.compat.padding_in_features:
            return tokens
        return replace(tokens, x=tokens.x.masked_fill(tokens.padding[..., None], 0.0))

    def _positions(self, tokens: Tokens) -> Tokens:
        x = self.positions(tokens.x, None if self.compat.padding_leaks else tokens.padding)
        return Tokens(x, tokens.padding)
