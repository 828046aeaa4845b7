"""Text: SentencePiece tokens, learned positions, token masks."""

from typing import TYPE_CHECKING

from selfdistill.config import RunConfig
from selfdistill.data.pipeline import InputPipeline
from selfdistill.errors import UserError
from selfdistill.modalities.base import Modality, check_spans
from selfdistill.modalities.text.config import TextEncoderConfig, TextInputConfig, TextMaskConfig
from selfdistill.modalities.text.data import TextPipeline, prepare
from selfdistill.modalities.text.encoder import TextEncoder
from selfdistill.modalities.text.hub import HUB, attach, companions
from selfdistill.modalities.text.original import ORIGINAL
from selfdistill.modalities.text.original_2 import ORIGINAL_2
from selfdistill.modalities.text.pack import PACKING

if TYPE_CHECKING:
    from selfdistill.modalities.learned import FeaturePicture
    from selfdistill.modalities.picture import SamplePicture


def check(config: RunConfig) -> None:
    """Refuse lengths and masks that cannot work."""
    if config.input.max_tokens < 3:
        raise UserError(
            f"input.max_tokens: {config.input.max_tokens} must be 3 or more, for <s>, a token "
            "and </s>"
        )
    if not 0 <= config.encoder.mask_id < config.encoder.vocab_size:
        raise UserError(
            f"encoder.mask_id: {config.encoder.mask_id} is no id of a vocabulary of "
            f"{config.encoder.vocab_size}"
        )
    check_spans(config.mask.mask_prob, config.mask.mask_length)
    if config.compat.masked_only_teacher and config.teacher.scope != "all":
        raise UserError(
            f"teacher.scope: {config.teacher.scope}, but with compat.masked_only_teacher the "
            "teacher's input is its own; choose all"
        )
    if config.compat.masked_only_teacher and config.mask.num_masks > 1:
        raise UserError(
            f"mask.num_masks: {config.mask.num_masks}, but with compat.masked_only_teacher the "
            "teacher's input depends on the mask; choose 1"
        )


def picture(config: RunConfig) -> "SamplePicture":
    """What shows samples to people; matplotlib takes a second to import."""
    from selfdistill.modalities.text.picture import TextPicture

    return TextPicture(config)


def features(config: RunConfig, pipeline: InputPipeline) -> "FeaturePicture":
    """What shows its features to people."""
    from selfdistill.modalities.text.learned import TextFeatures

    assert isinstance(pipeline, TextPipeline)
    return TextFeatures(pipeline)


MODALITY = Modality(
    name="text",
    encoder_config=TextEncoderConfig,
    mask_config=TextMaskConfig,
    input_config=TextInputConfig,
    build_encoder=TextEncoder,
    build_pipeline=TextPipeline,
    originals=(ORIGINAL, ORIGINAL_2),
    hub=HUB,
    architecture=("max_tokens",),
    companions=companions,
    attach=attach,
    check=check,
    prepare=prepare,
    packing=PACKING,
    picture=picture,
    features=features,
)
