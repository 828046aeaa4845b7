"""fairseq's ``Data2VecMultiModel`` (data2vec 2.0) on text: names and config."""

from collections.abc import Mapping
from typing import Any

from selfdistill.modalities.base import OriginalFormat
from selfdistill.modalities.fairseq import require
from selfdistill.modalities.fairseq_2 import own_settings, shared_names, shared_sections
from selfdistill.renaming import weight_and_bias

ENCODER = "modality_encoders.TEXT."

NAMES = [
    ("encoder.local.weight", f"{ENCODER}local_encoder.embed_tokens.weight"),
    ("encoder.positions.weight", f"{ENCODER}local_encoder.embed_positions.weight"),
    *weight_and_bias("encoder.norm", f"{ENCODER}local_encoder.layernorm_embedding"),
    *weight_and_bias("encoder.context_norm", f"{ENCODER}context_encoder.norm"),
    *shared_names("TEXT"),
]


def sections(config: Mapping[str, Any]) -> dict[str, Any]:
    """Sections of ours for a fairseq model config; the vocabulary's size and the id of ``<mask>``
    stand in fairseq's dictionary and have to be added."""
    own, found = own_settings(config, "text"), shared_sections(config, "text")
    require(own, "learned_pos", True, "positions are learned")
    require(own, "no_scale_embedding", True, "embeddings are not scaled")
    require(own, "layernorm_embedding", True, "embeddings are normed")
    require(own, "no_token_positional_embeddings", False, "tokens have positions")
    require(own, "use_alibi_encoder", False, "attention to tokens does not fade with distance")
    require(own, "num_extra_tokens", 0, "text has no extra tokens")
    require(own, "inverse_mask", False, "masked tokens are drawn")
    require(own, "mask_length", 1, "single tokens are masked")
    found["encoder"]["context_norm"] = own["prenet_depth"] > 0
    found["mask"]["kind"] = "tokens"
    found["input"] = {"max_tokens": own["max_source_positions"]}
    found["decoder"]["initializer"] = "bert"
    if found["teacher"]["scope"] == "all_but_local":
        # the original's local encoder holds these too: its teacher reads the student's
        found["teacher"]["copied"] = ["encoder.positions", "encoder.norm"]
    return found


ORIGINAL_2 = OriginalFormat(
    marker=f"{ENCODER}local_encoder.embed_tokens.weight",
    names=NAMES,
    teacher_prefixes=("", "blocks."),
    ignored=("_ema*", "*.version"),
    sections=sections,
)
