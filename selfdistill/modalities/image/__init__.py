"""Images: patches, relative positions, block masks."""

from collections.abc import Sequence

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
from selfdistill.modalities.image.hub import HUB
from selfdistill.modalities.image.original import ORIGINAL


def check(config: RunConfig) -> None:
    """Refuse grids and masks that cannot work."""
    image, mask = config.input, config.mask
    size, patch = list(image.size), config.encoder.patch_size
    for fine, key, value, rule in (
        (patch >= 1, "encoder.patch_size", patch, "must be 1 or more"),
        (mask.min_block >= 1, "mask.min_block", mask.min_block, "must be 1 or more"),
        (mask.max_block >= 0, "mask.max_block", mask.max_block, "must not be negative"),
        (0 < mask.min_aspect <= 1, "mask.min_aspect", mask.min_aspect, "must be in (0, 1]"),
        (_rising(image.crop_scale), "input.crop_scale", image.crop_scale, "must rise from above 0"),
        (_rising(image.crop_ratio), "input.crop_ratio", image.crop_ratio, "must rise from above 0"),
        (0 <= image.flip <= 1, "input.flip", image.flip, "must be between 0 and 1"),
        (min(image.std) > 0, "input.std", image.std, "must be more than 0"),
    ):
        if not fine:
            raise UserError(f"{key}: {value} {rule}")
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


def _rising(ends: Sequence[float]) -> bool:
    return 0 < ends[0] <= ends[1]


MODALITY = Modality(
    name="image",
    encoder_config=ImageEncoderConfig,
    mask_config=ImageMaskConfig,
    input_config=ImageInputConfig,
    build_encoder=ImageEncoder,
    build_pipeline=ImagePipeline,
    original=ORIGINAL,
    hub=HUB,
    architecture=("size",),
    check=check,
)
