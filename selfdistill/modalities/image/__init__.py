"""Images: patches, positions, masks of blocks."""

from collections.abc import Sequence
from math import inf
from typing import TYPE_CHECKING

from selfdistill.config import RunConfig
from selfdistill.data.pipeline import InputPipeline
from selfdistill.errors import UserError
from selfdistill.masking import masked_count
from selfdistill.modalities.base import Modality, check_share
from selfdistill.modalities.image.config import (
    ImageEncoderConfig,
    ImageInputConfig,
    ImageMaskConfig,
)
from selfdistill.modalities.image.data import ImagePipeline
from selfdistill.modalities.image.encoder import ImageEncoder
from selfdistill.modalities.image.flops import flops
from selfdistill.modalities.image.hub import HUB
from selfdistill.modalities.image.original import ORIGINAL
from selfdistill.modalities.image.original_2 import ORIGINAL_2
from selfdistill.modalities.image.pack import PACKING

if TYPE_CHECKING:
    from selfdistill.modalities.learned import FeaturePicture
    from selfdistill.modalities.picture import SamplePicture


def check(config: RunConfig) -> None:
    """Refuse grids and masks that cannot work."""
    image, mask = config.input, config.mask
    size, patch = list(image.size), config.encoder.patch_size
    for fine, key, value, rule in (
        (patch >= 1, "encoder.patch_size", patch, "must be 1 or more"),
        (mask.min_block >= 1, "mask.min_block", mask.min_block, "must be 1 or more"),
        (mask.max_block >= 0, "mask.max_block", mask.max_block, "must not be negative"),
        (0 < mask.min_aspect <= 1, "mask.min_aspect", mask.min_aspect, "must be in (0, 1]"),
        (
            _rising(image.crop_scale) and image.crop_scale[1] <= 1,
            "input.crop_scale",
            image.crop_scale,
            "must rise from above 0 to at most 1",
        ),
        (_rising(image.crop_ratio), "input.crop_ratio", image.crop_ratio, "must rise from above 0"),
        (0 <= image.flip <= 1, "input.flip", image.flip, "must be between 0 and 1"),
        (
            0 <= image.color_jitter < inf,
            "input.color_jitter",
            image.color_jitter,
            "must be 0 or more",
        ),
        (image.max_pixels >= 1, "input.max_pixels", image.max_pixels, "must be 1 or more"),
        (min(image.std) > 0, "input.std", image.std, "must be more than 0"),
    ):
        if not fine:
            raise UserError(f"{key}: {value} {rule}")
    if len(size) != 2 or any(side < 1 or side % patch for side in size):
        raise UserError(
            f"input.size: {size} must be a height and a width that are multiples of "
            f"encoder.patch_size {patch}"
        )
    _check_masks(config, (size[0] // patch, size[1] // patch))
    _check_positions(config)


def _check_masks(config: RunConfig, grid: tuple[int, int]) -> None:
    mask, patches = config.mask, grid[0] * grid[1]
    if patches == 1:
        raise UserError(
            f"encoder.patch_size: {config.encoder.patch_size} makes one patch of an image of "
            f"{' x '.join(map(str, config.input.size))}; a mask must leave something to see: "
            "choose smaller patches, or a larger input.size"
        )
    if mask.kind == "blocks":
        if not 0 < mask.num_patches < patches:
            raise UserError(
                f"mask.num_patches: {mask.num_patches} of {patches} patches; the mask must "
                f"leave something to see: choose 1 to {patches - 1}"
            )
        return
    check_share(mask.mask_prob)
    if not 1 <= mask.mask_length <= min(grid):
        raise UserError(
            f"mask.mask_length: squares of {mask.mask_length} patches do not fit a grid of "
            f"{grid[0]} x {grid[1]}; choose 1 to {min(grid)}"
        )
    masked = masked_count(patches, mask.mask_prob, mask.inverse_mask)
    if not 0 < masked < patches:
        raise UserError(
            f"mask.mask_prob: {mask.mask_prob} would mask {masked} of {patches} patches; the mask "
            "must leave something to see and something to predict"
        )


def _check_positions(config: RunConfig) -> None:
    encoder, width = config.encoder, config.model.width
    if config.strategy == "visible" and config.input.size[0] != config.input.size[1]:
        raise UserError(
            f"input.size: {list(config.input.size)} gives a grid that is not square, which the "
            "decoder of strategy=visible needs; choose equal sides, or strategy=dense"
        )
    if encoder.positions == "sincos" and width % 4:
        raise UserError(
            f"model.width: {width} must be a multiple of 4 for encoder.positions=sincos"
        )
    if encoder.num_extra_tokens < 0:
        raise UserError(
            f"encoder.num_extra_tokens: {encoder.num_extra_tokens} must not be negative"
        )
    if "relative" in encoder.positions and encoder.num_extra_tokens > 1:
        raise UserError(
            f"encoder.num_extra_tokens: {encoder.num_extra_tokens} is more than the one that "
            f"encoder.positions={encoder.positions} has a place for; choose 1 or 0"
        )


def _rising(ends: Sequence[float]) -> bool:
    return 0 < ends[0] <= ends[1]


def picture(config: RunConfig) -> "SamplePicture":
    """What shows samples to people; matplotlib takes a second to import."""
    from selfdistill.modalities.image.picture import ImagePicture

    return ImagePicture(config)


def features(config: RunConfig, pipeline: InputPipeline) -> "FeaturePicture":
    """What shows its features to people."""
    from selfdistill.modalities.image.learned import ImageFeatures

    return ImageFeatures(config)


MODALITY = Modality(
    name="image",
    encoder_config=ImageEncoderConfig,
    mask_config=ImageMaskConfig,
    input_config=ImageInputConfig,
    build_encoder=ImageEncoder,
    build_pipeline=ImagePipeline,
    originals=(ORIGINAL, ORIGINAL_2),
    hub=HUB,
    architecture=("size",),
    check=check,
    packing=PACKING,
    picture=picture,
    features=features,
    flops=flops,
)
