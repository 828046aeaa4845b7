"""Token and learned position embeddings (RoBERTa's layout, as data2vec 1.0 has it)."""

import torch
from torch import Tensor, nn

from selfdistill.config import CompatConfig, ModelConfig
from selfdistill.modalities.base import FeatureEncoder
from selfdistill.modalities.text.config import TextEncoderConfig, TextInputConfig
from selfdistill.modalities.text.tokenizer import PAD_ID
from selfdistill.models.initialise import bert_
from selfdistill.types import Masks, Tokens


class TextEncoder(FeatureEncoder):
    """Token ids int64 [B, T] to normed sums of token and position embeddings.

    The first position is PAD_ID + 1 and padding has no position of its own, so the table has two
    rows more than the longest input.
    """

    local: nn.Embedding

    def __init__(
        self,
        config: TextEncoderConfig,
        model: ModelConfig,
        text: TextInputConfig,
        compat: CompatConfig,
    ) -> None:
        super().__init__()
        self.mask_id = config.mask_id
        self.local = nn.Embedding(config.vocab_size, model.width, padding_idx=PAD_ID)
        rows = text.max_tokens + PAD_ID + 1
        self.positions = nn.Embedding(rows, model.width, padding_idx=PAD_ID)
        self.norm = nn.LayerNorm(model.width, eps=1e-5)
        self.dropout = nn.Dropout(model.dropout)
        self.apply(bert_)

    def embed(self, inputs: Tensor, lengths: Tensor | None) -> Tokens:
        """Without ``lengths`` there is no padding; with them, every PAD_ID is padding."""
        return Tokens(self.local(inputs), None if lengths is None else inputs.eq(PAD_ID))

    def fill(self, tokens: Tokens, masks: Masks) -> Tokens:
        mask_token = self.local.weight[self.mask_id]
        return Tokens(torch.where(masks.masked[..., None], mask_token, tokens.x), tokens.padding)

    def contextualise(self, tokens: Tokens) -> Tokens:
        batch, length, _ = tokens.x.shape
        if tokens.padding is None:
            ids = torch.arange(length, device=tokens.x.device).expand(batch, -1) + PAD_ID + 1
        else:
            real = (~tokens.padding).long()
            ids = real.cumsum(dim=1) * real + PAD_ID
        x = self.dropout(self.norm(tokens.x + self.positions(ids)))
        if tokens.padding is not None:
            x = x.masked_fill(tokens.padding[..., None], 0.0)
        return Tokens(x, tokens.padding)
