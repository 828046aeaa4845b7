"""transformers' ``Data2VecAudioModel``: names, config and feature extractor."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selfdistill.config import RunConfig
from selfdistill.modalities.base import HubFormat
from selfdistill.modalities.block_names import block_names
from selfdistill.modalities.hub import POST_NORM, block_fields, block_section, hold, require
from selfdistill.renaming import weight_and_bias

logger = logging.getLogger(__name__)

ARCHITECTURE = "Data2VecAudioModel"
CONVS = "feature_extractor.conv_layers.{}"
MASK_VECTOR = "masked_spec_embed"
MAX_SECONDS = "max_seconds"
"""Our key of it in the extractor's file, for us alone: transformers keeps it, and crops nothing."""

NAMES = [
    ("encoder.mask_token", MASK_VECTOR),
    *weight_and_bias("encoder.local.convs.{}.conv", f"{CONVS}.conv"),
    *weight_and_bias("encoder.local.convs.{}.norm", f"{CONVS}.layer_norm"),
    *weight_and_bias("encoder.local.norm", "feature_projection.layer_norm"),
    *weight_and_bias("encoder.local.projection", "feature_projection.projection"),
    *weight_and_bias("encoder.positions.convs.{}", "encoder.pos_conv_embed.layers.{}.conv"),
    *weight_and_bias("encoder.norm", "encoder.layer_norm"),
    *block_names(
        "encoder.layers.{}",
        ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
        {
            "attention.proj": "attention.out_proj",
            "norm1": "layer_norm",
            "mlp.fc1": "feed_forward.intermediate_dense",
            "mlp.fc2": "feed_forward.output_dense",
            "norm2": "final_layer_norm",
        },
    ),
]


def config_fields(config: RunConfig) -> dict[str, Any]:
    own = {"encoder.alibi": False, "encoder.prenet_depth": 0}
    hold(config, ARCHITECTURE, POST_NORM | own)
    encoder, model = config.encoder, config.model
    channels, kernels, strides = (list(part) for part in zip(*encoder.conv_layers, strict=True))
    return {
        **block_fields(config),
        "hidden_dropout": model.dropout,
        "activation_dropout": model.activation_dropout,
        "attention_dropout": model.attention_dropout,
        "feat_proj_dropout": encoder.input_dropout,
        "final_dropout": model.dropout,
        "layerdrop": model.layer_drop,
        "feat_extract_activation": "gelu",
        "num_feat_extract_layers": len(channels),
        "conv_dim": channels,
        "conv_kernel": kernels,
        "conv_stride": strides,
        "conv_bias": encoder.conv_bias,
        # not a kernel's width: the number of convolutions
        "num_conv_pos_embeddings": encoder.position_depth,
        "num_conv_pos_embedding_groups": encoder.position_groups,
        "conv_pos_kernel_size": encoder.position_kernel,
        # of fine-tuning, not of pretraining; 0 would leave masked_spec_embed out
        "mask_time_prob": 0.05,
        "mask_time_length": config.mask.mask_length,
        "vocab_size": 32,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def sections(
    theirs: Mapping[str, Any], processor: Mapping[str, Any] | None, folder: Path
) -> dict[str, dict[str, Any]]:
    require(theirs, {"feat_extract_activation": "gelu", "layer_norm_eps": 1e-5})
    require(theirs, {"add_adapter": False})
    depth, kernel = theirs["num_conv_pos_embeddings"], theirs["conv_pos_kernel_size"]
    layers = (theirs[key] for key in ("conv_dim", "conv_kernel", "conv_stride"))
    return {
        "encoder": {
            "conv_layers": [list(layer) for layer in zip(*layers, strict=True)],
            "conv_bias": theirs["conv_bias"],
            "position_width": kernel * depth,
            "position_depth": depth,
            "position_groups": theirs["num_conv_pos_embedding_groups"],
            "input_dropout": theirs["feat_proj_dropout"],
        },
        "model": {
            **block_section(theirs),
            "dropout": theirs["hidden_dropout"],
            "attention_dropout": theirs["attention_dropout"],
            "activation_dropout": theirs["activation_dropout"],
            "layer_drop": theirs["layerdrop"],
        },
        "mask": {"mask_length": theirs["mask_time_length"]},
        "input": _input(processor, folder),
    }


def _input(processor: Mapping[str, Any] | None, folder: Path) -> dict[str, Any]:
    if processor is None:
        logger.warning(
            "%s has no preprocessor_config.json; its encoder is taken for one of normalised sound "
            "of 16000 Hz",
            folder,
        )
        return {}
    found = {
        "sampling_rate": processor.get("sampling_rate", 16_000),
        "normalize": processor.get("do_normalize", True),
    }
    if MAX_SECONDS in processor:
        found[MAX_SECONDS] = processor[MAX_SECONDS]
    return found


def constants(config: RunConfig) -> dict[str, Tensor]:
    """Frames that a student does not see are zero to the positions of the others."""
    return {MASK_VECTOR: torch.zeros(config.model.width)} if config.strategy == "visible" else {}


def processor_files(config: RunConfig, companions: Path) -> dict[str, str]:
    fields = {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "feature_size": 1,
        "sampling_rate": config.input.sampling_rate,
        "padding_value": 0.0,
        "padding_side": "right",
        "do_normalize": config.input.normalize,
        "return_attention_mask": True,
        MAX_SECONDS: config.input.max_seconds,
    }
    return {"preprocessor_config.json": json.dumps(fields, indent=2) + "\n"}


USAGE = """\
import soundfile
from transformers import AutoFeatureExtractor, AutoModel
extractor, model = AutoFeatureExtractor.from_pretrained(path), AutoModel.from_pretrained(path)
waveform, rate = soundfile.read("clip.wav")  # one channel, {rate} Hz
inputs = extractor(waveform, sampling_rate=rate, return_tensors="pt")
outputs = model(**inputs, output_hidden_states=True)
features = outputs.hidden_states  # depth + 1 of [1, T, {width}]"""


def caution(config: RunConfig) -> str:
    if config.compat.padding_in_positions:
        return ""
    return (
        "In a padded batch transformers lets the padding into the positional convolutions, so that "
        "the frozen features of a shorter clip differ clearly from those of the clip alone, which "
        "are what this encoder was trained to give. Take clips of one length together, or one by "
        "one; fine-tuning gets used to it."
    )


HUB = HubFormat(
    model_type="data2vec-audio",
    architecture=ARCHITECTURE,
    prefix="data2vec_audio.",
    names=NAMES,
    dropped={},
    optional=("encoder.mask_token",),
    ignored=(),
    constants=constants,
    config=config_fields,
    sections=sections,
    processor=processor_files,
    task="feature-extraction",
    usage=lambda config: USAGE.format(rate=config.input.sampling_rate, width=config.model.width),
    caution=caution,
)
