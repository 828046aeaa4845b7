"""Patch embedding, class and mask token, and positions.

Source: BEiT for relative positions (data2vec 1.0, section 4.1); data2vec 2.0 (arXiv 2212.07525) has
fixed sine-cosine positions and a norm before the blocks.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from einops import rearrange
from timm.layers import PatchEmbed, RelPosBias
from torch import Tensor, nn

from selfdistill.config import RunConfig
from selfdistill.modalities.base import FeatureEncoder
from selfdistill.modalities.image.pixels import normalised
from selfdistill.models.dropout import Dropout
from selfdistill.models.initialise import beit_, beit_tensor_
from selfdistill.types import Tokens, after_prefix


class ImageEncoder(FeatureEncoder):
    """Pixels [B, 3, height, width] to class tokens and patches, row by row.

    Pixels are uint8, or float and normalised already.
    """

    class_token: nn.Parameter
    mask_token: nn.Parameter
    grid: tuple[int, int]
    mean: Tensor
    std: Tensor
    positions: Tensor | None
    relative_bias: nn.Module | None

    def __init__(self, config: RunConfig) -> None:
        super().__init__()
        encoder, model = config.encoder, config.model
        self.num_prefix_tokens = encoder.num_extra_tokens
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(getattr(config.input, name)), False)
        self.local = PatchEmbed(tuple(config.input.size), encoder.patch_size, 3, model.width)
        height, width = self.grid = self.local.grid_size
        tokens = []
        if encoder.num_extra_tokens:
            self.class_token = nn.Parameter(torch.zeros(1, encoder.num_extra_tokens, model.width))
            tokens.append(self.class_token)
        if config.strategy == "dense":
            self.mask_token = nn.Parameter(torch.zeros(1, 1, model.width))
            tokens.append(self.mask_token)
        self.positions = self.relative_bias = None
        if encoder.positions == "learned":
            self.positions = nn.Parameter(torch.zeros(1, height * width, model.width))
            beit_tensor_(self.positions)
        elif encoder.positions == "sincos":
            del self.positions
            self.register_buffer("positions", sincos((height, width), model.width), False)
        else:
            self.relative_bias = self._build_relative_bias(config)
        self.norm = nn.LayerNorm(model.width, model.norm_eps) if encoder.context_norm else None
        self.dropout = Dropout(model.dropout)
        if model.initializer == "beit":
            self.local.apply(beit_)
            for token in tokens:
                beit_tensor_(token)
        else:
            nn.init.xavier_uniform_(self.local.proj.weight.flatten(1))
            for token in tokens:
                nn.init.normal_(token)

    def _build_relative_bias(self, config: RunConfig) -> nn.Module:
        model, shared = config.model, config.encoder.positions == "relative"
        biases = [
            RelPosBias(self.grid, model.heads, prefix_tokens=self.num_prefix_tokens)
            for _ in range(1 if shared else config.encoder.prenet_depth + model.depth)
        ]
        for bias in biases:
            nn.init.zeros_(bias.relative_position_bias_table)
        return biases[0] if shared else nn.ModuleList(biases)

    @property
    def mask_vector(self) -> Tensor:
        return self.mask_token

    def embed(self, inputs: Tensor, lengths: Tensor | None) -> Tokens:
        pixels = inputs
        if inputs.dtype == torch.uint8:
            pixels = normalised(inputs, self.mean, self.std)
        return Tokens(self.local(pixels))

    def locate(self, tokens: Tokens) -> Tokens:
        if self.positions is None:
            return tokens
        return replace(tokens, x=tokens.x + self.positions)

    def enter(self, tokens: Tokens) -> Tokens:
        prefix = self.num_prefix_tokens
        x = tokens.x
        if prefix:
            first = self.class_token.expand(len(x), -1, -1)
            x = torch.cat([first.to(x.dtype), x], dim=1)
        if self.norm is not None:
            x = self.norm(x)
        padding = tokens.padding
        if padding is not None:
            padding = nn.functional.pad(padding, (prefix, 0), value=False)
        return replace(tokens, x=self.dropout(x), padding=padding)

    def attention_biases(self, places: Tensor) -> Sequence[Tensor]:
        if self.relative_bias is None:
            return ()
        rows = after_prefix(places, self.num_prefix_tokens)
        return [
            self._relative(part, rows)
            for part in self.relative_bias.modules()
            if isinstance(part, RelPosBias)
        ]

    def _relative(self, bias: RelPosBias, rows: Tensor) -> Tensor:
        """[B, V] token numbers to [B, H, V, V], looked up for these tokens only."""
        size = bias.window_area + self.num_prefix_tokens
        index = bias.get_buffer("relative_position_index").view(size, size)
        pairs = index[rows[:, :, None], rows[:, None, :]]
        logits = nn.functional.embedding(pairs, bias.relative_position_bias_table)
        return rearrange(logits, "b i j h -> b h i j")


def sincos(grid: tuple[int, int], width: int) -> Tensor:
    """Fixed positions float32 [1, T, D]: half of the channels tell the column, half the row.

    Each half is sines and cosines of the place times 10000^(-j / (D / 4)), j = 0 .. D / 4 - 1.
    """
    quarter = width // 4
    frequency = 10_000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    rows, columns = torch.meshgrid(
        *(torch.arange(side, dtype=torch.float64) for side in grid), indexing="ij"
    )
    angles = [place.flatten()[:, None] * frequency for place in (columns, rows)]
    return torch.cat([f(a) for a in angles for f in (torch.sin, torch.cos)], dim=1).float()[None]
