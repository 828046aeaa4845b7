"""transformers' ``Data2VecTextModel``: names, config and tokenizer."""

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selfdistill.config import RunConfig
from selfdistill.errors import UserError
from selfdistill.modalities.base import HubFormat
from selfdistill.modalities.block_names import block_names
from selfdistill.modalities.hub import POST_NORM, block_fields, block_section, hold, require
from selfdistill.modalities.text.roberta_json import has_roberta_files
from selfdistill.modalities.text.tokenizer import (
    BOS_ID,
    EOS_ID,
    PAD_ID,
    TOKENIZER_FILE,
    load_tokenizer,
    tokenizer_config,
)
from selfdistill.renaming import weight_and_bias

logger = logging.getLogger(__name__)

ARCHITECTURE = "Data2VecTextModel"
ATTENTION = "attention.self"
POSITIONS = "embeddings.position_embeddings.weight"
TOKEN_TYPES = "embeddings.token_type_embeddings.weight"

NAMES = [
    ("encoder.local.weight", "embeddings.word_embeddings.weight"),
    ("encoder.positions.weight", POSITIONS),
    *weight_and_bias("encoder.norm", "embeddings.LayerNorm"),
    *block_names(
        "encoder.layer.{}",
        (f"{ATTENTION}.query", f"{ATTENTION}.key", f"{ATTENTION}.value"),
        {
            "attention.proj": "attention.output.dense",
            "norm1": "attention.output.LayerNorm",
            "mlp.fc1": "intermediate.dense",
            "mlp.fc2": "output.dense",
            "norm2": "output.LayerNorm",
        },
    ),
]


def config_fields(config: RunConfig) -> dict[str, Any]:
    own = {"encoder.context_norm": False, "encoder.prenet_depth": 0}
    hold(config, ARCHITECTURE, POST_NORM | own)
    return {
        **block_fields(config),
        "vocab_size": config.encoder.vocab_size,
        # positions begin behind the padding's
        "max_position_embeddings": config.input.max_tokens + PAD_ID + 1,
        "type_vocab_size": 1,
        "hidden_dropout_prob": config.model.dropout,
        "attention_probs_dropout_prob": config.model.attention_dropout,
        "pad_token_id": PAD_ID,
        "bos_token_id": BOS_ID,
        "eos_token_id": EOS_ID,
    }


def sections(
    theirs: Mapping[str, Any], processor: Mapping[str, Any] | None, folder: Path
) -> dict[str, dict[str, Any]]:
    require(theirs, {"layer_norm_eps": 1e-5, "pad_token_id": PAD_ID})
    require(theirs, {"position_embedding_type": "absolute"})
    if theirs.get("is_decoder"):
        logger.warning("the weights in %s are of a decoder; here they see both ways", folder)
    if not (folder / TOKENIZER_FILE).exists() and not has_roberta_files(folder):
        raise UserError(
            f"there is no {TOKENIZER_FILE}; save the encoder's tokenizer there, too, as "
            "save_pretrained of transformers' tokenizers does"
        )
    tokenizer = load_tokenizer(folder / TOKENIZER_FILE)
    return {
        "encoder": {"vocab_size": theirs["vocab_size"], "mask_id": tokenizer.mask_id},
        "input": {"max_tokens": theirs["max_position_embeddings"] - PAD_ID - 1},
        "model": {
            **block_section(theirs),
            "dropout": theirs["hidden_dropout_prob"],
            "attention_dropout": theirs["attention_probs_dropout_prob"],
        },
    }


def companions(folder: Path) -> dict[str, str]:
    """The tokenizer of a run's folder, or of one of transformers."""
    return {TOKENIZER_FILE: load_tokenizer(folder / TOKENIZER_FILE).content}


def fold(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every token is of type 0, whose vector fine-tuning moves: ours has it in the positions."""
    found = {_today(name): tensor for name, tensor in tensors.items()}
    if {TOKEN_TYPES, POSITIONS} <= found.keys():
        positions = found[POSITIONS].clone()
        positions[PAD_ID + 1 :] += found[TOKEN_TYPES][0]
        found[POSITIONS] = positions
    return found


def _today(name: str) -> str:
    # BERT's names in TensorFlow, which transformers 5.0 writes too
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace(
        "LayerNorm.beta", "LayerNorm.bias"
    )


def attach(config: RunConfig, folder: Path) -> RunConfig:
    """The config that reads the tokenizer of ``folder``."""
    return replace(config, input=replace(config.input, tokenizer=str(folder / TOKENIZER_FILE)))


def constants(config: RunConfig) -> dict[str, Tensor]:
    """What RoBERTa has and data2vec has not: it adds nothing, and the pooler is for one head."""
    width = config.model.width
    return {
        TOKEN_TYPES: torch.zeros(1, width),
        "pooler.dense.weight": torch.zeros(width, width),
        "pooler.dense.bias": torch.zeros(width),
    }


def processor_files(config: RunConfig, folder: Path) -> dict[str, str]:
    tokenizer = load_tokenizer(folder / TOKENIZER_FILE)
    fields = tokenizer_config(tokenizer, config.input.max_tokens)
    return {
        TOKENIZER_FILE: tokenizer.content,
        "tokenizer_config.json": json.dumps(fields, indent=2) + "\n",
    }


USAGE = """\
from transformers import AutoModel, AutoTokenizer
tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModel.from_pretrained(path)
inputs = tokenizer("In the beginning was the word.", truncation=True, return_tensors="pt")
outputs = model(**inputs, output_hidden_states=True)
features = outputs.hidden_states  # depth + 1 of [1, T, {width}]"""

HUB = HubFormat(
    model_type="data2vec-text",
    architecture=ARCHITECTURE,
    prefix="data2vec_text.",
    names=NAMES,
    dropped={},
    optional=(),
    ignored=("embeddings.position_ids", TOKEN_TYPES, "pooler.*"),
    fold=fold,
    constants=constants,
    config=config_fields,
    sections=sections,
    processor=processor_files,
    task="feature-extraction",
    usage=lambda config: USAGE.format(width=config.model.width),
)
