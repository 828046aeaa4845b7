"""The BEiT-style original of data2vec 1.0 vision: names and config."""

from collections.abc import Mapping
from typing import Any

from selfdistill.modalities.base import OriginalFormat
from selfdistill.modalities.block_names import BLOCK
from selfdistill.modalities.fairseq import require
from selfdistill.renaming import weight_and_bias

THEIRS = "blocks.{}"

NAMES = [
    ("encoder.class_token", "cls_token"),
    ("encoder.mask_token", "mask_token"),
    *weight_and_bias("encoder.local.proj", "patch_embed.proj"),
    (
        "encoder.relative_bias.relative_position_bias_table",
        "rel_pos_bias.relative_position_bias_table",
    ),
    (
        "encoder.relative_bias.{}.relative_position_bias_table",
        f"{THEIRS}.attn.relative_position_bias_table",
    ),
    (f"{BLOCK}.attention.qkv.weight", f"{THEIRS}.attn.qkv.weight"),
    (f"{BLOCK}.attention.q_bias", f"{THEIRS}.attn.q_bias"),
    (f"{BLOCK}.attention.v_bias", f"{THEIRS}.attn.v_bias"),
    *weight_and_bias(f"{BLOCK}.attention.proj", f"{THEIRS}.attn.proj"),
    (f"{BLOCK}.gain1.gamma", f"{THEIRS}.gamma_1"),
    (f"{BLOCK}.gain2.gamma", f"{THEIRS}.gamma_2"),
    *weight_and_bias(f"{BLOCK}.norm1", f"{THEIRS}.norm1"),
    *weight_and_bias(f"{BLOCK}.norm2", f"{THEIRS}.norm2"),
    *weight_and_bias(f"{BLOCK}.mlp.fc1", f"{THEIRS}.mlp.fc1"),
    *weight_and_bias(f"{BLOCK}.mlp.fc2", f"{THEIRS}.mlp.fc2"),
    *weight_and_bias("trunk.norm", "norm"),
    *weight_and_bias("head.0", "lm_head"),
]


ABSOLUTE_ERROR = 1e-12
"""The original's beta of 0 is the absolute error; ours is the squared one, which it calls
l2_loss."""


def sections(config: Mapping[str, Any]) -> dict[str, Any]:
    """Sections of ours for the settings of a pretraining run of the original."""
    image, width, depth = config["img"], config["dim"], config["depth"]
    size = [image, image] if isinstance(image, int) else list(image)
    scale = config.get("loss_scale", -1)  # -1 is the original's default and means none
    require(config, "var_w0", 0, "the loss has no term for the predictions' variance")
    layer_norms = [kind for kind in ("batch", "instance") if config.get(f"target_{kind}_norm")]
    if config.get("target_layer_norm_last", True):
        layer_norms.append("layer")
    target_norms = [
        kind
        for kind in ("instance", "layer")
        if config.get(f"post_target_{kind}_norm", kind == "layer")  # as published
    ]
    return {
        "encoder": {"patch_size": config["patch"]},
        "input": {"size": size},
        "mask": {
            "num_patches": config["num_mask"],
            "min_block": config["min_block"],
            "max_block": config["max_block"] or 0,
        },
        "model": {
            "width": width,
            "depth": depth,
            "heads": config["heads"],
            # the original cuts the hidden width off, we round it
            "mlp_ratio": int(width * config["mlp_ratio"]) / width,
            "norm_order": "pre",
            "norm_eps": 1e-6,
            "key_bias": False,
            "layer_scale": config["layer_scale"],
            "initializer": "beit",
        },
        "objective": {
            "average_top_k_layers": len(config["target_layers"]),
            "target_layers": [layer % depth for layer in config["target_layers"]],
            "target_from": "ffn" if config.get("layer_results") == "fc" else "block",
            "layer_norms": layer_norms,
            "target_norms": target_norms,
            "loss_beta": 0.0 if config.get("l2_loss") else max(config["l1_beta"], ABSOLUTE_ERROR),
            "loss_scale": "mean" if scale == -1 else scale / width,
            "head_initializer": "beit",
        },
        "teacher": {
            "ema_decay": config["ema_decay_init"],
            "ema_end_decay": config["ema_decay"],
            "ema_anneal_end_step": config["ema_start_at"],
            "scope": "all",
        },
    }


ORIGINAL = OriginalFormat(
    marker="cls_token",
    names=NAMES,
    teacher_prefixes=("",),
    ignored=("*relative_position_index",),
    sections=sections,
)
