"""The audio sections of the config."""

from dataclasses import dataclass, field
from typing import Literal

from selfdistill.config import EncoderConfig, MaskConfig

CONV_LAYERS = [[512, 10, 5], *[[512, 3, 2]] * 4, *[[512, 2, 2]] * 2]


@dataclass(frozen=True)
class AudioEncoderConfig(EncoderConfig):
    conv_layers: list[list[int]] = field(default_factory=lambda: [list(c) for c in CONV_LAYERS])
    """Channels, kernel width and stride of each layer of the feature encoder."""
    conv_bias: bool = False
    position_width: int = 95
    """Receptive field of the positional convolutions (the originals' conv_pos)."""
    position_depth: int = 5
    position_groups: int = 16
    input_dropout: float = 0.0
    """On the student's local features, before masking."""
    alibi: bool = False
    """Attention that fades with distance, by a learned scale."""
    alibi_per_head: bool = True
    alibi_per_layer: bool = False

    @property
    def position_kernel(self) -> int:
        """Width of each of the ``position_depth`` convolutions."""
        return max(3, self.position_width // self.position_depth)


@dataclass(frozen=True)
class AudioMaskConfig(MaskConfig):
    kind: Literal["spans", "painted"] = "spans"
    """spans: those of wav2vec 2.0 and data2vec 1.0. painted: those of 2.0, which mask exactly
    ``mask_prob`` of each clip."""
    mask_prob: float = 0.65
    """Masked share; with spans what they would cover if they did not overlap."""
    mask_length: int = 10
    """Frames per span."""
    mask_prob_adjust: float = 0.0
    """painted: so many spans more are drawn before their share is set right frame by frame."""
    equal_counts: bool = False
    """spans: thin the masks of a batch out to the smallest count in it, as the original does, whose
    batches hold clips of one length. Masks then depend on how samples are batched, and the
    shortest clip decides how much of the longest is masked."""


@dataclass(frozen=True)
class AudioInputConfig:
    sampling_rate: int = 16_000
    resample: bool = True
    """False: clips of another rate count as bad."""
    min_seconds: float = 0.0
    """Shorter clips count as bad; so do those too short for the feature encoder."""
    max_seconds: float = 20.0
    """Longer clips are cropped, at random in training."""
    normalize: bool = True
    """Zero mean and unit variance per clip."""
