"""fairseq's ``Data2VecMultiModel`` (data2vec 2.0) on images: names and config."""

from collections.abc import Mapping
from typing import Any

from selfdistill.modalities.base import OriginalFormat
from selfdistill.modalities.fairseq import require
from selfdistill.modalities.fairseq_2 import own_settings, shared_names, shared_sections
from selfdistill.renaming import weight_and_bias

ENCODER = "modality_encoders.IMAGE."

NAMES = [
    ("encoder.class_token", f"{ENCODER}extra_tokens"),
    *weight_and_bias("encoder.local.proj", f"{ENCODER}local_encoder.proj"),
    *weight_and_bias("encoder.norm", f"{ENCODER}context_encoder.norm"),
    *shared_names("IMAGE"),
]


def sections(config: Mapping[str, Any]) -> dict[str, Any]:
    """Sections of ours for a fairseq model config."""
    own, found = own_settings(config, "image"), shared_sections(config, "image")
    require(own, "fixed_positions", True, "positions are sines and cosines")
    require(own, "use_alibi_encoder", False, "attention to patches does not fade with distance")
    require(own, "transformer_decoder", False, "the decoder is convolutional")
    require(own, "in_chans", 3, "images have three channels")
    require(own, "embed_dim", config["embed_dim"], "patches are embedded at the blocks' width")
    found["encoder"] |= {
        "patch_size": own["patch_size"],
        "positions": "sincos",
        "num_extra_tokens": own["num_extra_tokens"],
        "context_norm": True,
    }
    found["mask"] |= {
        "kind": "squares",
        "mask_length": own["mask_length"],
        "mask_prob_adjust": own["mask_prob_adjust"],
        "inverse_mask": own["inverse_mask"],
    }
    found["input"] = {"size": [own["input_size"]] * 2}
    found["decoder"]["projection_layers"] = 1  # whatever the setting says
    return found


ORIGINAL_2 = OriginalFormat(
    marker=f"{ENCODER}context_encoder.norm.weight",
    names=NAMES,
    teacher_prefixes=("", "blocks."),
    ignored=("_ema*", f"{ENCODER}fixed_positional_encoder.positions"),
    sections=sections,
)
