"""Images: patches, relative positions, block masks."""

from selfdistill.config import RunConfig
from selfdistill.errors import UserError
from selfdistill.modalities.base import Modality
from selfdistill.modalities.image.config import (
    ImageEncoderConfig,
    ImageInputConfig,
    ImageMaskConfig,
)
from selfdistill.modalities.image.data import ImagePipeline
from selfdistill.modalities.image.encoder import ImageEncoder
from selfdistill.modalities.image.original import ORIGINAL


def check(config: RunConfig) -> None:
    """Refuse grids and masks that cannot work."""
    size, patch = list(config.input.size), config.encoder.patch_size
    if len(size) != 2 or any(side < 1 or side % patch for side in size):
        raise UserError(
            f"input.size: {size} must be a height and a width that are multiples of "
            f"encoder.patch_size {patch}"
        )
    patches = size[0] // patch * (size[1] // patch)
    if not 0 < config.mask.num_patches < patches:
        raise UserError(
            f"mask.num_patches: {config.mask.num_patches} of {patches} patches; the mask must "
            f"leave something to see: choose 1 to {patches - 1}"
        )


MODALITY = Modality(
    name="image",
    encoder_config=ImageEncoderConfig,
    mask_config=ImageMaskConfig,
    input_config=ImageInputConfig,
    build_encoder=ImageEncoder,
    build_pipeline=ImagePipeline,
    original=ORIGINAL,
    check=check,
)
