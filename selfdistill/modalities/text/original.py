"""fairseq's ``Data2VecTextModel`` (data2vec 1.0): names and config."""

from collections.abc import Mapping
from typing import Any

from selfdistill.modalities.base import OriginalFormat
from selfdistill.modalities.fairseq import (
    ema_section,
    layer_names,
    objective_section,
    require,
)
from selfdistill.renaming import weight_and_bias

PREFIX = "encoder.sentence_encoder."

NAMES = [
    ("encoder.local.weight", f"{PREFIX}embed_tokens.weight"),
    ("encoder.positions.weight", f"{PREFIX}embed_positions.weight"),
    *weight_and_bias("encoder.norm", f"{PREFIX}layernorm_embedding"),
    *layer_names(PREFIX),
    *weight_and_bias("trunk.norm", f"{PREFIX}layer_norm"),
    *weight_and_bias("head.{}", "encoder.regression_head.{}"),
]


def sections(config: Mapping[str, Any]) -> dict[str, Any]:
    """Sections of ours for a fairseq model config; the vocabulary's size and the id of
    ``<mask>`` stand in fairseq's dictionary and have to be added."""
    transformer = config["transformer"]
    encoder = transformer["encoder"]
    require(encoder, "learned_pos", True, "positions are learned")
    require(transformer, "no_scale_embedding", True, "embeddings are not scaled")
    require(transformer, "layernorm_embedding", True, "embeddings are normed")
    require(transformer, "activation_fn", "gelu", "the feed-forward network has GELU")
    width, objective = encoder["embed_dim"], objective_section(config)
    if objective["loss_scale"] != "rsqrt_width" and objective["loss_scale"] <= 0:
        objective["loss_scale"] = "rsqrt_width"
    return {
        "input": {"max_tokens": transformer["max_source_positions"]},
        "model": {
            "width": width,
            "depth": encoder["layers"],
            "heads": encoder["attention_heads"],
            "mlp_ratio": encoder["ffn_embed_dim"] / width,
            "norm_order": "pre" if encoder["normalize_before"] else "post",
            "dropout": transformer["dropout"],
            "attention_dropout": transformer["attention_dropout"],
            "activation_dropout": transformer["activation_dropout"],
            "layer_drop": encoder["layerdrop"],
        },
        "objective": {
            **objective,
            "head_layers": config["head_layers"],
            "head_initializer": "bert",
        },
        "teacher": {
            **ema_section(config),
            "scope": "all",
            "copied": ["encoder.local", "encoder.positions", "encoder.norm"]
            if config["ema_transformer_layers_only"]
            else [],
        },
    }


ORIGINAL = OriginalFormat(
    marker=f"{PREFIX}embed_tokens.weight",
    names=NAMES,
    teacher_prefixes=(PREFIX,),
    # the published model has a head for tokens, of which pretraining knows nothing
    ignored=("*_ema*", "*.version", "encoder.lm_head.*"),
    sections=sections,
)
