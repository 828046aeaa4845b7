"""What the three data2vec classes of transformers have in common."""

from collections.abc import Mapping
from typing import Any

from selfdistill.config import RunConfig
from selfdistill.errors import UserError

POST_NORM = {
    "model.norm_order": "post",
    "model.key_bias": True,
    "model.layer_scale": 0.0,
    "model.norm_eps": 1e-5,
}
"""What the classes for audio and text can hold."""


def hold(config: RunConfig, architecture: str, wanted: Mapping[str, Any]) -> None:
    """Refuse to export what the class has no field for.

    Args:
        config: of the run.
        architecture: the class.
        wanted: keys of the config to the only value that the class can hold.

    Raises:
        UserError: a key has another value.
    """
    for key, value in wanted.items():
        found = config.value(key)
        if found != value:
            raise UserError(
                f"{architecture} cannot hold {key}={found}; pretrain with {key}={value} to export"
            )


def require(theirs: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuse to import what our encoder cannot be.

    Args:
        theirs: the folder's ``config.json``.
        wanted: fields to the value that they must have where they are given.

    Raises:
        UserError: a field has another value.
    """
    for key, value in wanted.items():
        if theirs.get(key, value) != value:
            raise UserError(
                f"config.json: {key} is {theirs[key]!r}; only weights with {value!r} can be read"
            )


def block_fields(config: RunConfig) -> dict[str, Any]:
    """The fields of ``config.json`` that all three classes share."""
    model = config.model
    return {
        "hidden_size": model.width,
        "num_hidden_layers": model.depth,
        "num_attention_heads": model.heads,
        "intermediate_size": model.mlp_width,
        "hidden_act": "gelu",
        "initializer_range": 0.02,
        "layer_norm_eps": model.norm_eps,
    }


def block_section(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """The ``model`` section for the fields that all three classes share."""
    require(theirs, {"hidden_act": "gelu"})
    return {
        "width": theirs["hidden_size"],
        "depth": theirs["num_hidden_layers"],
        "heads": theirs["num_attention_heads"],
        "mlp_ratio": theirs["intermediate_size"] / theirs["hidden_size"],
        "norm_eps": theirs["layer_norm_eps"],
    }
