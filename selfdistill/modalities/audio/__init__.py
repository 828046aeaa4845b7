"""Audio: waveform, convolutional features and positions, span masks."""

from math import inf
from typing import TYPE_CHECKING

from selfdistill.config import RunConfig
from selfdistill.data.pipeline import InputPipeline
from selfdistill.errors import UserError
from selfdistill.modalities.audio.config import (
    AudioEncoderConfig,
    AudioInputConfig,
    AudioMaskConfig,
)
from selfdistill.modalities.audio.data import (
    MAX_RATE,
    MIN_RATE,
    AudioPipeline,
    seconds,
    shortest_clip,
)
from selfdistill.modalities.audio.encoder import AudioEncoder
from selfdistill.modalities.audio.flops import flops
from selfdistill.modalities.audio.hub import HUB
from selfdistill.modalities.audio.original import ORIGINAL
from selfdistill.modalities.audio.original_2 import ORIGINAL_2
from selfdistill.modalities.audio.pack import PACKING
from selfdistill.modalities.base import Modality, check_spans

if TYPE_CHECKING:
    from selfdistill.modalities.learned import FeaturePicture
    from selfdistill.modalities.picture import SamplePicture


def check(config: RunConfig) -> None:
    """Refuse convolutions and masks that cannot work."""
    if not config.encoder.conv_layers:
        raise UserError("encoder.conv_layers: [] must have one layer or more")
    for layer in config.encoder.conv_layers:
        if len(layer) != 3 or min(layer) < 1:
            raise UserError(
                f"encoder.conv_layers: {list(layer)} must be channels, kernel width and stride, "
                "each 1 or more"
            )
    for key in ("position_width", "position_depth", "position_groups"):
        if getattr(config.encoder, key) < 1:
            raise UserError(f"encoder.{key}: {getattr(config.encoder, key)} must be 1 or more")
    if config.model.width % config.encoder.position_groups:
        raise UserError(
            f"encoder.position_groups: {config.encoder.position_groups} must divide "
            f"model.width {config.model.width}"
        )
    check_spans(config.mask.mask_prob, config.mask.mask_length)
    if not MIN_RATE <= config.input.sampling_rate <= MAX_RATE:
        raise UserError(
            f"input.sampling_rate: {config.input.sampling_rate} must be between {MIN_RATE} and "
            f"{MAX_RATE} Hz"
        )
    for key in ("min_seconds", "max_seconds"):
        value = getattr(config.input, key)
        if not 0 <= value < inf:
            raise UserError(f"input.{key}: {value} must be finite and 0 or more")
    shortest = shortest_clip(config.encoder.conv_layers)
    if config.input.max_seconds * config.input.sampling_rate < shortest:
        raise UserError(
            f"input.max_seconds: {config.input.max_seconds} is too short for the feature encoder, "
            f"which needs {shortest} samples"
        )
    if config.input.min_seconds > config.input.max_seconds:
        raise UserError(
            f"input.min_seconds: {config.input.min_seconds} is more than "
            f"input.max_seconds {config.input.max_seconds}"
        )


def picture(config: RunConfig) -> "SamplePicture":
    """What shows samples to people; matplotlib takes a second to import."""
    from selfdistill.modalities.audio.picture import AudioPicture

    return AudioPicture(config)


def features(config: RunConfig, pipeline: InputPipeline) -> "FeaturePicture":
    """What shows its features to people."""
    from selfdistill.modalities.audio.learned import AudioFeatures

    return AudioFeatures(config)


MODALITY = Modality(
    name="audio",
    encoder_config=AudioEncoderConfig,
    mask_config=AudioMaskConfig,
    input_config=AudioInputConfig,
    build_encoder=AudioEncoder,
    build_pipeline=AudioPipeline,
    originals=(ORIGINAL, ORIGINAL_2),
    hub=HUB,
    check=check,
    length=seconds,
    length_unit="seconds",
    packing=PACKING,
    picture=picture,
    features=features,
    flops=flops,
)
