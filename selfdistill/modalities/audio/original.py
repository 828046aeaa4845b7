"""fairseq's ``Data2VecAudioModel`` (data2vec 1.0): names and config."""

import re
from collections.abc import Mapping
from typing import Any

from selfdistill.errors import UserError
from selfdistill.modalities.base import OriginalFormat
from selfdistill.modalities.fairseq import (
    ema_section,
    layer_names,
    objective_section,
    require,
)
from selfdistill.renaming import weight_and_bias

CONVS = "encoder.local.convs.{}"

NAMES = [
    ("encoder.mask_token", "mask_emb"),
    *weight_and_bias(f"{CONVS}.conv", "feature_extractor.conv_layers.{}.0"),
    *weight_and_bias(f"{CONVS}.norm", "feature_extractor.conv_layers.{}.2.1"),
    *weight_and_bias("encoder.local.norm", "layer_norm"),
    *weight_and_bias("encoder.local.projection", "post_extract_proj"),
    *weight_and_bias("encoder.positions.convs.{}", "encoder.pos_conv.{}.0"),
    *weight_and_bias("encoder.norm", "encoder.layer_norm"),
    *layer_names("encoder."),
    *weight_and_bias("head.0", "final_proj"),
]


def parse_conv_layers(text: str) -> list[list[int]]:
    """fairseq's notation, a sum of repeated lists such as ``[(512, 10, 5)] + [(512, 3, 2)] * 4``,
    read without evaluating it.

    Raises:
        UserError: anything else.
    """
    term = r"\[\s*(?:\(\s*\d+\s*,\s*\d+\s*,\s*\d+\s*\)\s*,?\s*)+\]\s*(?:\*\s*\d+\s*)?"
    if not re.fullmatch(rf"\s*{term}(?:\+\s*{term})*", text):
        raise UserError(f"original checkpoint: cannot read conv_feature_layers={text!r}")
    layers: list[list[int]] = []
    for group, times in re.findall(r"\[([^\]]*)\]\s*(?:\*\s*(\d+))?", text):
        triples = re.findall(r"\(\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*\)", group)
        layers += [[int(n) for n in triple] for triple in triples] * int(times or 1)
    return layers


def sections(config: Mapping[str, Any]) -> dict[str, Any]:
    """Sections of ours for a fairseq model config."""
    require(config, "extractor_mode", "layer_norm", "the feature encoder has layer norm only")
    require(config, "feature_grad_mult", 1.0, "the feature encoder's gradient is not scaled")
    require(config, "layer_norm_first", False, "the original's pre-norm audio model differs")
    require(config, "layer_type", "transformer", "the blocks are Transformer blocks")
    require(config, "activation_fn", "gelu", "the feed-forward network has GELU")
    require(config, "ema_transformer_only", True, "the teacher shares the feature encoder")
    if not any(config.get(f"{kind}_norm_target_layer") for kind in ("batch", "instance")):
        require(
            config,
            "instance_norm_targets",
            False,
            "the original would norm over the batch, not time",
        )
    if config["pos_conv_depth"] < 2:
        raise UserError(
            "original checkpoint: pos_conv_depth=1 is wav2vec 2.0's weight-normalised convolution "
            "and cannot be imported"
        )
    width = config["encoder_embed_dim"]
    return {
        "encoder": {
            "conv_layers": parse_conv_layers(config["conv_feature_layers"]),
            "conv_bias": config["conv_bias"],
            "position_width": config["conv_pos"],
            "position_depth": config["pos_conv_depth"],
            "position_groups": config["conv_pos_groups"],
            "input_dropout": config["dropout_input"],
        },
        "mask": {"mask_prob": config["mask_prob"], "mask_length": config["mask_length"]},
        "model": {
            "width": width,
            "depth": config["encoder_layers"],
            "heads": config["encoder_attention_heads"],
            "mlp_ratio": config["encoder_ffn_embed_dim"] / width,
            "dropout": config["dropout"],
            "attention_dropout": config["attention_dropout"],
            "activation_dropout": config["activation_dropout"],
            "layer_drop": config["encoder_layerdrop"],
        },
        "objective": objective_section(config),
        "teacher": {
            **ema_section(config),
            "copied": ["encoder.positions"] if config["ema_layers_only"] else [],
        },
    }


ORIGINAL = OriginalFormat(
    marker="post_extract_proj.weight",
    names=NAMES,
    teacher_prefixes=("encoder.",),
    ignored=("_ema*",),
    sections=sections,
)
