"""A feature encoder and the shared blocks: what pretraining makes and everybody else uses."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from selfdistill.config import RunConfig
from selfdistill.modalities.base import FeatureEncoder, Modality
from selfdistill.models.block import BlockOutput
from selfdistill.models.trunk import Trunk
from selfdistill.types import Masks, Tokens


class Backbone(nn.Module):
    """Encoder of one modality over the shared blocks."""

    def __init__(self, encoder: FeatureEncoder, trunk: Trunk) -> None:
        super().__init__()
        self.encoder = encoder
        self.trunk = trunk

    def forward(self, tokens: Tokens, masks: Masks | None) -> Tensor:
        """Contextual vectors [B, T, D] of local features, the masked ones hidden."""
        if masks is not None:
            tokens = self.encoder.fill(tokens, masks)
        tokens = self.encoder.contextualise(tokens)
        x = self.trunk(tokens.x, tokens.padding, self.encoder.attention_bias())
        return x[:, self.encoder.num_prefix_tokens :]

    def layers(self, tokens: Tokens) -> Iterator[BlockOutput]:
        """Each block's output on unmasked local features, without prefix tokens."""
        prefix = self.encoder.num_prefix_tokens
        tokens = self.encoder.contextualise(tokens)
        for x, ffn in self.trunk.layers(tokens.x, tokens.padding, self.encoder.attention_bias()):
            yield BlockOutput(x[:, prefix:], ffn[:, prefix:])

    @torch.no_grad()
    def hidden_states(
        self, inputs: Tensor, lengths: Tensor | None = None
    ) -> tuple[list[Tensor], Tensor | None]:
        """Features to read out.

        Args:
            inputs, lengths: as in ``Batch``.

        Returns:
            depth + 1 tensors [B, T, D] without prefix tokens (index 0 the blocks' input, i the
            output of block i), and the padding bool [B, T] or None.
        """
        prefix = self.encoder.num_prefix_tokens
        local = self.encoder.embed(inputs, lengths)
        tokens = self.encoder.contextualise(local)
        bias = self.encoder.attention_bias()
        outputs = self.trunk.layers(tokens.x, tokens.padding, bias)
        return [x[:, prefix:] for x in (tokens.x, *(o.x for o in outputs))], local.padding


def build_backbone(modality: Modality, config: RunConfig) -> Backbone:
    """The backbone of a run, with fresh weights drawn from torch's global generator."""
    encoder = modality.build_encoder(config.encoder, config.model, config.input, config.compat)
    return Backbone(encoder, Trunk(config.model))
