"""Patch embedding, class and mask token, and the relative position bias (BEiT)."""

import torch
from timm.layers import PatchEmbed, RelPosBias
from torch import Tensor, nn

from selfdistill.config import CompatConfig, ModelConfig
from selfdistill.modalities.base import FeatureEncoder
from selfdistill.modalities.image.config import ImageEncoderConfig, ImageInputConfig
from selfdistill.models.initialise import beit_, beit_tensor_
from selfdistill.types import Masks, Tokens


class ImageEncoder(FeatureEncoder):
    """Pixels [B, 3, height, width] to class token and patches, row by row."""

    num_prefix_tokens = 1

    def __init__(
        self,
        config: ImageEncoderConfig,
        model: ModelConfig,
        image: ImageInputConfig,
        compat: CompatConfig,
    ) -> None:
        super().__init__()
        height, width = image.size
        self.local = PatchEmbed((height, width), config.patch_size, 3, model.width)
        self.class_token = nn.Parameter(torch.zeros(1, 1, model.width))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, model.width))
        shared = config.relative_bias == "shared"
        biases = [
            RelPosBias(self.local.grid_size, model.heads, prefix_tokens=1)
            for _ in range(1 if shared else model.depth)
        ]
        for bias in biases:
            nn.init.zeros_(bias.relative_position_bias_table)
        self.relative_bias = biases[0] if shared else nn.ModuleList(biases)
        self.local.apply(beit_)
        beit_tensor_(self.class_token)
        beit_tensor_(self.mask_token)

    def embed(self, inputs: Tensor, lengths: Tensor | None) -> Tokens:
        return Tokens(self.local(inputs))

    def fill(self, tokens: Tokens, masks: Masks) -> Tokens:
        return Tokens(torch.where(masks.masked[..., None], self.mask_token, tokens.x))

    def contextualise(self, tokens: Tokens) -> Tokens:
        first = self.class_token.expand(len(tokens.x), -1, -1)
        return Tokens(torch.cat([first.to(tokens.x.dtype), tokens.x], dim=1))

    def attention_bias(self) -> Tensor:
        biases = (part for part in self.relative_bias.modules() if isinstance(part, RelPosBias))
        return torch.cat([bias.get_bias() for bias in biases])
