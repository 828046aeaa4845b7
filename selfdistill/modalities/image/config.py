"""The image sections of the config."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class ImageEncoderConfig:
    patch_size: int = 16
    relative_bias: Literal["shared", "block"] = "shared"
    """block: every block has relative positions of its own, as in published fine-tuned models."""


@dataclass(frozen=True)
class ImageMaskConfig:
    num_patches: int = 120
    """Masked patches per image; a mask may fall a few short of it."""
    min_block: int = 16
    """Smallest nominal block, in patches."""
    max_block: int = 0
    """Largest block, in patches; 0: only limited by num_patches."""
    min_aspect: float = 0.3


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
