"""Floating point operations of the image encoder."""

from selfdistill.config import RunConfig
from selfdistill.models.flops import Counts, EncoderFlops, convolution


def flops(config: RunConfig, counts: Counts) -> EncoderFlops:
    """The patches' projection; positions are looked up."""
    samples, channels, height, width = counts.shape
    patch = config.encoder.patch_size
    patches = samples * (height // patch) * (width // patch)
    return EncoderFlops(convolution(patches, patch**2, channels, config.model.width, first=True))
