"""The text sections of the config."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TextEncoderConfig:
    vocab_size: int = 50_000
    mask_id: int = 4
    """The token whose embedding stands for a masked one."""


@dataclass(frozen=True)
class TextMaskConfig:
    mask_prob: float = 0.35
    """Masked share that the spans would cover if they did not overlap."""
    mask_length: int = 4
    """Tokens per span (the original's mask_multiple_length)."""


@dataclass(frozen=True)
class TextInputConfig:
    tokenizer: str = ""
    """A tokenizer.json in RoBERTa's layout, or a SentencePiece model; empty: the one in the run's
    folder, and if there is none, one is trained on the training shards."""
    max_tokens: int = 512
    """Longest input, with <s> and </s>; longer passages are cropped, at random in training."""
