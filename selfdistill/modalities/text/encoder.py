"""Token and learned position embeddings (RoBERTa's layout, as data2vec 1.0 has it)."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from selfdistill.config import RunConfig
from selfdistill.modalities.base import FeatureEncoder
from selfdistill.modalities.text.tokenizer import PAD_ID
from selfdistill.models.dropout import Dropout
from selfdistill.models.initialise import bert_
from selfdistill.types import Tokens


class TextEncoder(FeatureEncoder):
    """Token ids int64 [B, T] to normed sums of token and position embeddings.

    The first position is PAD_ID + 1 and padding has no position of its own, so the table has two
    rows more than the longest input.
    """

    local: nn.Embedding

    def __init__(self, config: RunConfig) -> None:
        super().__init__()
        encoder, width = config.encoder, config.model.width
        self.mask_id = encoder.mask_id
        self.clears_padding = not config.compat.padding_in_features
        self.hides_by_padding = config.compat.masked_only_teacher
        self.local = nn.Embedding(encoder.vocab_size, width, padding_idx=PAD_ID)
        rows = config.input.max_tokens + PAD_ID + 1
        self.positions = nn.Embedding(rows, width, padding_idx=PAD_ID)
        self.norm = nn.LayerNorm(width, eps=1e-5)
        self.context_norm = (
            nn.LayerNorm(width, config.model.norm_eps) if encoder.context_norm else None
        )
        self.dropout = Dropout(config.model.dropout)
        self.apply(bert_)

    @property
    def mask_vector(self) -> Tensor:
        return self.local.weight[self.mask_id]

    def embed(self, inputs: Tensor, lengths: Tensor | None) -> Tokens:
        """Padding is what lies behind ``lengths``: a text that spells ``<pad>`` has PAD_ID, too."""
        if lengths is None:
            return Tokens(self.local(inputs))
        padding = torch.arange(inputs.shape[1], device=inputs.device) >= lengths[:, None]
        if self.hides_by_padding:
            padding = padding | inputs.eq(PAD_ID)
        return Tokens(self.local(inputs), padding)

    def locate(self, tokens: Tokens) -> Tokens:
        batch, length, _ = tokens.x.shape
        if tokens.padding is None:
            ids = torch.arange(length, device=tokens.x.device).expand(batch, -1) + PAD_ID + 1
        else:
            real = (~tokens.padding).long()
            ids = real.cumsum(dim=1) * real + PAD_ID
        return replace(tokens, x=tokens.x + self.positions(ids))

    def enter(self, tokens: Tokens) -> Tokens:
        x = self.norm(tokens.x)
        if self.context_norm is not None:
            x = self.context_norm(x)
        x = self.dropout(x)
        if tokens.padding is not None and self.clears_padding:
            x = x.masked_fill(tokens.padding[..., None], 0.0)
        return replace(tokens, x=x)
