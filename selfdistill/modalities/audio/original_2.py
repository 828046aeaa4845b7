"""fairseq's ``Data2VecMultiModel`` (data2vec 2.0) on audio: names and config."""

from collections.abc import Mapping
from typing import Any

from selfdistill.modalities.audio.original import parse_conv_layers
from selfdistill.modalities.base import OriginalFormat
from selfdistill.modalities.fairseq import require
from selfdistill.modalities.fairseq_2 import own_settings, shared_names, shared_sections
from selfdistill.renaming import weight_and_bias

ENCODER = "modality_encoders.AUDIO."
CONVS = "encoder.local.convs.{}"

NAMES = [
    (f"{CONVS}.conv.weight", f"{ENCODER}local_encoder.conv_layers.{{}}.0.weight"),
    *weight_and_bias(f"{CONVS}.norm", f"{ENCODER}local_encoder.conv_layers.{{}}.2.1"),
    *weight_and_bias("encoder.local.norm", f"{ENCODER}project_features.1"),
    *weight_and_bias("encoder.local.projection", f"{ENCODER}project_features.2"),
    *weight_and_bias(
        "encoder.positions.convs.{}", f"{ENCODER}relative_positional_encoder.{{+1}}.0"
    ),
    *weight_and_bias("encoder.norm", f"{ENCODER}context_encoder.norm"),
    ("encoder.alibi.scale", f"{ENCODER}alibi_scale"),
    *shared_names("AUDIO"),
]


def sections(config: Mapping[str, Any]) -> dict[str, Any]:
    """Sections of ours for a fairseq model config."""
    own, found = own_settings(config, "audio"), shared_sections(config, "audio")
    require(own, "extractor_mode", "layer_norm", "the feature encoder has layer norm only")
    require(own, "conv_pos_pre_ln", False, "there is no norm before the positions")
    require(own, "num_extra_tokens", 0, "audio has no extra tokens")
    require(own, "encoder_zero_mask", True, "positions see zeros at masked places")
    require(own, "inverse_mask", False, "spans are masked, not kept")
    if own["use_alibi_encoder"]:
        require(own, "learned_alibi", False, "the bias itself is not learned")
        require(own, "learned_alibi_scale", True, "the scale of the bias is learned")
        require(own, "num_alibi_heads", config["num_heads"], "every head has a slope")
    found["encoder"] |= {
        "conv_layers": parse_conv_layers(own["feature_encoder_spec"]),
        "position_width": own["conv_pos_width"],
        "position_depth": own["conv_pos_depth"],
        "position_groups": own["conv_pos_groups"],
        "alibi": own["use_alibi_encoder"],
        "alibi_per_head": own["learned_alibi_scale_per_head"],
        "alibi_per_layer": own["learned_alibi_scale_per_layer"],
    }
    found["mask"] |= {
        "kind": "painted",
        "mask_length": own["mask_length"],
        "mask_prob_adjust": own["mask_prob_adjust"],
    }
    return found


ORIGINAL_2 = OriginalFormat(
    marker=f"{ENCODER}project_features.2.weight",
    names=NAMES,
    teacher_prefixes=("", "blocks."),
    ignored=("_ema*",),
    sections=sections,
)
