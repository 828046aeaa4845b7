"""What the fairseq originals of audio and text have in common."""

from collections.abc import Mapping
from typing import Any

from selfdistill.errors import UserError
from selfdistill.modalities.block_names import block_names
from selfdistill.renaming import Pair

PROJECTIONS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
LAYERS = {
    "attention.proj": "self_attn.out_proj",
    "norm1": "self_attn_layer_norm",
    "mlp.fc1": "fc1",
    "mlp.fc2": "fc2",
    "norm2": "final_layer_norm",
}


def layer_names(prefix: str) -> list[Pair]:
    """Names of the student's Transformer layers below ``prefix`` in a fairseq encoder."""
    return block_names(f"{prefix}layers.{{}}", PROJECTIONS, LAYERS)


def require(config: Mapping[str, Any], key: str, wanted: Any, why: str) -> None:
    """Refuse an original whose ``key`` is not ``wanted``."""
    if config.get(key, wanted) != wanted:
        raise UserError(f"original checkpoint: {key}={config[key]!r} cannot be imported: {why}")


def objective_section(config: Mapping[str, Any]) -> dict[str, Any]:
    """Targets and loss."""
    require(config, "group_norm_target_layer", False, "there is no such target normalisation")
    layer_norms = [
        kind
        for kind in ("batch", "instance", "layer")
        if config.get(f"{kind}_norm_target_layer", False)
    ]
    target_norms = [
        kind for kind in ("layer", "instance") if config.get(f"{kind}_norm_targets", False)
    ]
    scale = config.get("loss_scale")
    return {
        "average_top_k_layers": config["average_top_k_layers"],
        "target_from": "ffn",
        "layer_norms": layer_norms,
        "target_norms": target_norms,
        "loss_beta": config["loss_beta"],
        "loss_scale": "rsqrt_width" if scale is None else float(scale),
    }


def ema_section(config: Mapping[str, Any]) -> dict[str, Any]:
    """The decay's ramp."""
    return {key: config[key] for key in ("ema_decay", "ema_end_decay", "ema_anneal_end_step")}
