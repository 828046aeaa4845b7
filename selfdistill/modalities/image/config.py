"""The image sections of the config."""

from dataclasses import dataclass, field
from typing import Literal

from selfdistill.config import EncoderConfig, MaskConfig


@dataclass(frozen=True)
class ImageEncoderConfig(EncoderConfig):
    patch_size: int = 16
    positions: Literal["relative", "block_relative", "learned", "sincos"] = "relative"
    """relative: a learned bias on attention by distance, shared by all blocks (data2vec 1.0).
    block_relative: every block has its own, as in published fine-tuned models. learned: a vector
    per patch. sincos: a fixed one (2.0)."""
    num_extra_tokens: int = 1
    """Class tokens in front of the patches; the last one is that of ``objective.cls_loss``."""
    context_norm: bool = False
    """LayerNorm before the blocks (2.0)."""


@dataclass(frozen=True)
class ImageMaskConfig(MaskConfig):
    kind: Literal["blocks", "squares"] = "blocks"
    """blocks: rectangles that cover patches (BEiT, data2vec 1.0). squares: of ``mask_length``, that
    leave exactly 1 - ``mask_prob`` of the patches visible where ``inverse_mask`` is set (2.0)."""
    num_patches: int = 120
    """blocks: masked patches per image; a mask may fall a few short of it."""
    min_block: int = 16
    """blocks: smallest nominal one, in patches. Where hardly any fits, because num_patches or the
    grid is smaller, masks fall far short."""
    max_block: int = 0
    """blocks: largest, in patches; 0: only limited by num_patches."""
    min_aspect: float = 0.3
    """blocks: smallest ratio of height to width; the largest is its inverse."""
    mask_prob: float = 0.8
    """squares: masked share."""
    mask_length: int = 3
    """squares: patches from side to side."""
    mask_prob_adjust: float = 0.0
    """squares: so many more are drawn before their share is set right patch by patch."""
    inverse_mask: bool = True
    """squares: what they cover is visible, not masked."""


@dataclass(frozen=True)
class ImageInputConfig:
    size: list[int] = field(default_factory=lambda: [224, 224])
    """Height and width in pixels."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Share of the image's area that a random crop covers."""
    crop_ratio: tuple[float, float] = (0.75, 4 / 3)
    flip: float = 0.5
    """Chance of a horizontal flip."""
    color_jitter: float = 0.4
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    max_pixels: int = 100_000_000
    """Larger images count as bad, before they are decoded."""
