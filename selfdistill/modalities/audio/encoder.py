"""Convolutional feature encoder and convolutional positions on the waveform (data2vec 1.0)."""

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from selfdistill.config import CompatConfig, ModelConfig
from selfdistill.modalities.audio.config import AudioEncoderConfig, AudioInputConfig
from selfdistill.modalities.base import FeatureEncoder
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


class ConvLayer(nn.Module):
    """Convolution in time without padding, LayerNorm over channels, GELU; x is [B, L, C]."""

    def __init__(self, inner: int, outer: int, kernel: int, stride: int, bias: bool) -> None:
        super().__init__()
        self.conv = nn.Conv1d(inner, outer, kernel, stride, bias=bias)
        self.norm = nn.LayerNorm(outer)
        nn.init.kaiming_normal_(self.conv.weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.norm(self.conv(x.mT).mT))


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


class ConvPositions(nn.Module):
    """Grouped convolutions over time whose output is added to the features.

    Padded frames are cleared before each convolution, so that a row's result does not depend on
    what it is batched with; ``leak_padding`` clears them before the first only, as fairseq did.
    """

    def __init__(self, config: AudioEncoderConfig, width: int, leak_padding: bool) -> None:
        super().__init__()
        kernel = max(3, config.position_width // config.position_depth)
        self.leak_padding = leak_padding
        self.convs = nn.ModuleList(
            nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=config.position_groups)
            for _ in range(config.position_depth)
        )

    def forward(self, x: Tensor, padding: Tensor | None) -> Tensor:
        """Positions [B, T, D] of features [B, T, D], which must be 0 where padded."""
        length = x.shape[1]
        for number, conv in enumerate(self.convs):
            if padding is not None and number and not self.leak_padding:
                x = x.masked_fill(padding[..., None], 0.0)
            # an even kernel gives one frame too many
            x = conv(x.mT).mT[:, :length]
            x = F.gelu(F.layer_norm(x, x.shape[-1:]))
        return x


class AudioEncoder(FeatureEncoder):
    """Waveform float [B, L] at 16 kHz to normed frames with positions."""

    local: LocalFeatures

    def __init__(
        self,
        config: AudioEncoderConfig,
        model: ModelConfig,
        audio: AudioInputConfig,
        compat: CompatConfig,
    ) -> None:
        super().__init__()
        self.conv_layers = [list(layer) for layer in config.conv_layers]
        self.local = LocalFeatures(config, model.width)
        self.input_dropout = nn.Dropout(config.input_dropout)
        self.mask_token = nn.Parameter(torch.rand(model.width))
        self.positions = ConvPositions(config, model.width, compat.padding_in_positions)
        self.norm = nn.LayerNorm(model.width, eps=1e-5)
        self.dropout = nn.Dropout(model.dropout)

    def embed(self, inputs: Tensor, lengths: Tensor | None) -> Tokens:
        x = self.local(inputs)
        if lengths is None:
            return Tokens(x)
        frames = frame_count(lengths, self.conv_layers)
        return Tokens(x, torch.arange(x.shape[1], device=x.device) >= frames[:, None])

    def fill(self, tokens: Tokens, masks: Masks) -> Tokens:
        x = self.input_dropout(tokens.x)
        return Tokens(torch.where(masks.masked[..., None], self.mask_token, x), tokens.padding)

    def contextualise(self, tokens: Tokens) -> Tokens:
        x, padding = tokens.x, tokens.padding
        if padding is not None:
            x = x.masked_fill(padding[..., None], 0.0)
        x = self.norm(x + self.positions(x, padding))
        return Tokens(self.dropout(x), padding)
