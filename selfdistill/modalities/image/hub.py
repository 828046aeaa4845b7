"""transformers' ``Data2VecVisionModel``: names, config and image processor."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selfdistill.config import RunConfig
from selfdistill.errors import UserError
from selfdistill.modalities.base import HubFormat
from selfdistill.modalities.block_names import BLOCK, block_names
from selfdistill.modalities.hub import block_fields, block_section, hold, require
from selfdistill.modalities.image.encoder import sincos
from selfdistill.renaming import weight_and_bias

logger = logging.getLogger(__name__)

ARCHITECTURE = "Data2VecVisionModel"
LAYER = "encoder.layer.{}"
TABLE = "relative_position_bias_table"
BICUBIC = 3
PROCESSOR_MEAN = PROCESSOR_STD = 0.5
PROCESSOR_SIZE = 224
"""transformers' own, where a processor's file does not tell."""
CLASS, MASK = "embeddings.cls_token", "embeddings.mask_token"
POSITIONS = "embeddings.position_embeddings"

NAMES = [
    ("encoder.class_token", CLASS),
    ("encoder.mask_token", MASK),
    ("encoder.positions", POSITIONS),
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


WANTED = {
    "model.norm_order": "pre",
    "model.key_bias": False,
    "encoder.context_norm": False,
    "encoder.prenet_depth": 0,
    "encoder.num_extra_tokens": 1,
}


def config_fields(config: RunConfig) -> dict[str, Any]:
    hold(config, ARCHITECTURE, WANTED)
    height, width = config.input.size
    if height != width:
        raise UserError(
            f"{ARCHITECTURE} cannot hold input.size={[height, width]}, because it takes the grid "
            "of positions to be square; pretrain on square images to export"
        )
    model, positions = config.model, config.encoder.positions
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
        "use_absolute_position_embeddings": positions in ("learned", "sincos"),
        "use_relative_position_bias": positions == "block_relative",
        "use_shared_relative_position_bias": positions == "relative",
        "use_mean_pooling": True,
        "out_indices": segmentation_layers(model.depth),
    }


def segmentation_layers(depth: int) -> list[int]:
    """Four of ``depth`` layers, counted from 1; the published ones are 3, 5, 7, 11 of 12.

    Of one block only those that there are: the class then refuses it by this field, where four
    would break it in the middle of its first step.
    """
    if depth < 2:
        return [1, 2]
    if depth < 6:
        return [1, 2, 3, 4]
    return [depth * part // 12 - 1 for part in (4, 6, 8, 12)]


def sections(
    theirs: Mapping[str, Any], processor: Mapping[str, Any] | None, folder: Path
) -> dict[str, dict[str, Any]]:
    require(theirs, {"num_channels": 3})
    size, patch = (_side(theirs, key) for key in ("image_size", "patch_size"))
    return {
        "encoder": {"patch_size": patch, "positions": _positions(theirs)},
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
        "input": {"size": [size, size], **_normalisation(processor, size, folder)},
    }


def _side(theirs: Mapping[str, Any], key: str) -> int:
    """Height and width, which the class takes as two numbers, too."""
    sides = theirs[key] if isinstance(theirs[key], list) else [theirs[key]]
    if len(set(sides)) != 1 or not isinstance(sides[0], int):
        raise UserError(f"config.json: {key} is {theirs[key]!r}; only square images can be read")
    return sides[0]


def _normalisation(
    processor: Mapping[str, Any] | None, size: int, folder: Path
) -> dict[str, list[float]]:
    """Our mean and deviation, of pixels from 0 to 1, for what the processor does with its own."""
    if processor is None:
        logger.warning(
            "%s has no preprocessor_config.json; its encoder is taken for one of pixels with "
            "ImageNet's mean and deviation",
            folder,
        )
        return {}
    told = {key: value for key, value in processor.items() if value is not None}
    _warn_of_resizing(told, size)
    mean, std = [0.0] * 3, [1.0] * 3
    if told.get("do_normalize", True):
        mean = _numbers(told, "image_mean", PROCESSOR_MEAN)
        std = _numbers(told, "image_std", PROCESSOR_STD)
    factor = 1.0
    if told.get("do_rescale", True):
        factor = _numbers(told, "rescale_factor", 1 / 255)[0]
    highest = 255 * factor  # of their pixels
    return {"mean": [value / highest for value in mean], "std": [value / highest for value in std]}


def _numbers(processor: Mapping[str, Any], key: str, default: float) -> list[float]:
    """Of the three channels; one number is that of all."""
    told = processor.get(key, default)
    values = told if isinstance(told, list) else [told] * 3
    if len(values) != 3 or not all(isinstance(value, int | float) for value in values):
        raise UserError(f"preprocessor_config.json: {key} is {told!r}; expected a number, or three")
    return values


def _warn_of_resizing(processor: Mapping[str, Any], size: int) -> None:
    ours = {"do_resize": True, "resample": BICUBIC, "do_center_crop": False}
    other = [
        f"{key}={processor[key]}" for key in ours if processor.get(key, ours[key]) != ours[key]
    ]
    theirs = processor.get("size", PROCESSOR_SIZE)
    if theirs not in (size, {"height": size, "width": size}):
        other.append(f"size={theirs}" if "size" in processor else f"no size (then it is {theirs})")
    if other:
        logger.warning(
            "preprocessor_config.json has %s, but here images are squashed to %d x %d by bicubic "
            "interpolation: features differ from those of transformers",
            ", ".join(other),
            size,
            size,
        )


def _positions(theirs: Mapping[str, Any]) -> str:
    kinds = {
        "use_absolute_position_embeddings": "learned",
        "use_relative_position_bias": "block_relative",
        "use_shared_relative_position_bias": "relative",
    }
    found = [field for field in kinds if theirs.get(field)]
    if len(found) != 1:
        raise UserError(
            f"config.json: exactly one of {', '.join(kinds)} must be true for weights to be read, "
            f"found {' and '.join(found) or 'none'}"
        )
    return kinds[found[0]]


def constants(config: RunConfig) -> dict[str, Tensor]:
    """What runs without a mask vector or with fixed positions have no parameters for."""
    width, side = config.model.width, config.input.size[0] // config.encoder.patch_size
    found = {}
    if config.strategy == "visible":
        found[MASK] = torch.zeros(1, 1, width)
    if config.encoder.positions == "sincos":
        found[POSITIONS] = sincos((side, side), width)
    return found


def fold(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The class token has a position of its own there; ours has it in the token."""
    found = dict(tensors)
    if {CLASS, POSITIONS} <= found.keys() and found[POSITIONS].ndim == 3:
        found[CLASS] = found[CLASS] + found[POSITIONS][:, :1]
        found[POSITIONS] = found[POSITIONS][:, 1:]
    return found


def unfold(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Positions with one of zeros for the class token in front."""
    found = dict(tensors)
    if POSITIONS in found:
        found[POSITIONS] = torch.nn.functional.pad(found[POSITIONS], (0, 0, 1, 0))
    return found


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
from PIL import Image, ImageOps
from transformers import AutoImageProcessor, AutoModel
processor, model = AutoImageProcessor.from_pretrained(path), AutoModel.from_pretrained(path)
picture = ImageOps.exif_transpose(Image.open("picture.jpg")).convert("RGBA")  # upright
picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
inputs = processor(picture.convert("RGB"), return_tensors="pt")
outputs = model(**inputs, output_hidden_states=True)
features = outputs.hidden_states  # depth + 1 of [1, 1 + T, {width}]"""


def caution(config: RunConfig) -> str:
    if config.model.depth > 1:
        return ""
    return (
        "Data2VecVisionForSemanticSegmentation cannot be made of an encoder of one block: it reads "
        "more layers than that."
    )


def beyond(theirs: Mapping[str, Any]) -> str:
    if theirs.get("use_mean_pooling", True):
        return ""
    return (
        "config.json has use_mean_pooling=false, so that a norm follows the last block in "
        "last_hidden_state; features here, and those of what is exported here, are the blocks' "
        "outputs, its hidden_states"
    )


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
    constants=constants,
    fold=fold,
    unfold=unfold,
    config=config_fields,
    sections=sections,
    processor=processor_files,
    task="image-feature-extraction",
    usage=lambda config: USAGE.format(width=config.model.width),
    read_as={"encoder.positions": {"sincos": "learned"}},
    caution=caution,
    beyond=beyond,
)
