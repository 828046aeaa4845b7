"""transformers' ``Data2VecVisionModel``: names, config and image processor."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfdistill.config import RunConfig
from selfdistill.errors import UserError
from selfdistill.modalities.base import HubFormat
from selfdistill.modalities.block_names import BLOCK, block_names
from selfdistill.modalities.hub import block_fields, block_section, hold, require
from selfdistill.renaming import weight_and_bias

ARCHITECTURE = "Data2VecVisionModel"
LAYER = "encoder.layer.{}"
TABLE = "relative_position_bias_table"
BICUBIC = 3

NAMES = [
    ("encoder.class_token", "embeddings.cls_token"),
    ("encoder.mask_token", "embeddings.mask_token"),
    *weight_and_bias("encoder.local.proj", "embeddings.patch_embeddings.projection"),
    (f"encoder.relative_bias.{TABLE}", f"encoder.relative_position_bias.{TABLE}"),
    (
        f"encoder.relative_bias.{{}}.{TABLE}",
        f"{LAYER}.attention.attention.relative_position_bias.{TABLE}",
    ),
    *block_names(
        LAYER,
        (
            "attention.attention.query",
            "attention.attention.key",
            "attention.attention.value",
        ),
        {
            "attention.proj": "attention.output.dense",
            "norm1": "layernorm_before",
            "norm2": "layernorm_after",
            "mlp.fc1": "intermediate.dense",
            "mlp.fc2": "output.dense",
        },
        biased="qv",
    ),
    (f"{BLOCK}.gain1.gamma", f"{LAYER}.lambda_1"),
    (f"{BLOCK}.gain2.gamma", f"{LAYER}.lambda_2"),
    *weight_and_bias("trunk.norm", "layernorm"),
]


def config_fields(config: RunConfig) -> dict[str, Any]:
    hold(config, ARCHITECTURE, {"model.norm_order": "pre", "model.key_bias": False})
    height, width = config.input.size
    if height != width:
        raise UserError(
            f"{ARCHITECTURE} cannot hold input.size={[height, width]}, because it swaps the axes "
            "of the relative positions; pretrain on square images to export"
        )
    model = config.model
    return {
        **block_fields(config),
        "hidden_dropout_prob": model.dropout,
        "attention_probs_dropout_prob": model.attention_dropout,
        "drop_path_rate": model.drop_path,
        "layer_scale_init_value": model.layer_scale,
        "image_size": height,
        "patch_size": config.encoder.patch_size,
        "num_channels": 3,
        "use_mask_token": True,
        "use_absolute_position_embeddings": False,
        "use_relative_position_bias": config.encoder.relative_bias == "block",
        "use_shared_relative_position_bias": config.encoder.relative_bias == "shared",
        "use_mean_pooling": True,
        "out_indices": segmentation_layers(model.depth),
    }


def segmentation_layers(depth: int) -> list[int]:
    """Four of ``depth`` layers, counted from 1; the published ones are 3, 5, 7, 11 of 12."""
    if depth < 6:
        return [1, 2, 3, 4]
    return [depth * part // 12 - 1 for part in (4, 6, 8, 12)]


def sections(
    theirs: Mapping[str, Any], processor: Mapping[str, Any], folder: Path
) -> dict[str, dict[str, Any]]:
    require(theirs, {"use_absolute_position_embeddings": False, "num_channels": 3})
    by_block = theirs["use_relative_position_bias"]
    if by_block == theirs["use_shared_relative_position_bias"]:
        raise UserError(
            f"config.json: use_relative_position_bias and use_shared_relative_position_bias are "
            f"both {by_block}; only weights with one of them can be read"
        )
    size, patch = theirs["image_size"], theirs["patch_size"]
    for key, value in (("image_size", size), ("patch_size", patch)):
        if not isinstance(value, int):
            raise UserError(f"config.json: {key} is {value!r}; only square images can be read")
    images = {
        ours: processor[key]
        for ours, key in (("mean", "image_mean"), ("std", "image_std"))
        if key in processor
    }
    return {
        "encoder": {"patch_size": patch, "relative_bias": "block" if by_block else "shared"},
        "mask": {"num_patches": max(1, (size // patch) ** 2 // 2)},
        "model": {
            **block_section(theirs),
            "norm_order": "pre",
            "key_bias": False,
            "layer_scale": theirs["layer_scale_init_value"],
            "initializer": "beit",
            "dropout": theirs["hidden_dropout_prob"],
            "attention_dropout": theirs["attention_probs_dropout_prob"],
            "drop_path": theirs["drop_path_rate"],
        },
        "input": {"size": [size, size], **images},
    }


def processor_files(config: RunConfig, companions: Path) -> dict[str, str]:
    height, width = config.input.size
    size = {"height": height, "width": width}
    fields = {
        "image_processor_type": "BeitImageProcessor",
        "do_resize": True,
        "size": size,
        "resample": BICUBIC,
        "do_center_crop": False,
        "crop_size": size,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(config.input.mean),
        "image_std": list(config.input.std),
        "do_reduce_labels": False,
    }
    return {"preprocessor_config.json": json.dumps(fields, indent=2) + "\n"}


USAGE = """\
from PIL import Image
from transformers import AutoImageProcessor, AutoModel
processor, model = AutoImageProcessor.from_pretrained(path), AutoModel.from_pretrained(path)
inputs = processor(Image.open("picture.jpg").convert("RGB"), return_tensors="pt")
outputs = model(**inputs, output_hidden_states=True)
features = outputs.hidden_states  # depth + 1 of [1, 1 + T, {width}]"""

HUB = HubFormat(
    model_type="data2vec-vision",
    architecture=ARCHITECTURE,
    prefix="data2vec_vision.",
    names=NAMES,
    dropped={
        "trunk.norm.*": "with mean pooling the class has no norm after the last block; features "
        "are the blocks' outputs"
    },
    optional=("encoder.mask_token",),
    ignored=("*relative_position_index", "pooler.layernorm.*"),
    constants=lambda config: {},
    config=config_fields,
    sections=sections,
    processor=processor_files,
    task="image-feature-extraction",
    usage=lambda config: USAGE.format(width=config.model.width),
)
