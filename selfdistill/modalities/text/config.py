"""The text sections of the config."""

from dataclasses import dataclass
from typing import Literal

from selfdistill.config import EncoderConfig, MaskConfig


@dataclass(frozen=True)
class TextEncoderConfig(EncoderConfig):
    vocab_size: int = 50_000
    mask_id: int = 4
    """The token whose embedding stands for a masked one."""
    context_norm: bool = False
    """A second norm of the embeddings, before blocks of the modality's own (2.0)."""


@dataclass(frozen=True)
class TextMaskConfig(MaskConfig):
    kind: Literal["spans", "tokens"] = "spans"
    """spans: those of data2vec 1.0. tokens: single ones, ``mask_prob`` of each passage (2.0)."""
    mask_prob: float = 0.35
    """Masked share; with spans what they would cover if they did not overlap."""
    mask_length: int = 4
    """spans: tokens of each (the original's mask_multiple_length)."""


@dataclass(frozen=True)
class TextInputConfig:
    tokenizer: str = ""
    """A tokenizer.json in RoBERTa's layout, or a SentencePiece model; empty: the one in the run's
    folder, and if there is none, one is trained on the training shards."""
    max_tokens: int = 512
    """Longest input, with <s> and </s>; longer passages are cropped, at random in training."""
