"""What the fairseq originals of data2vec 2.0 have in common: one model class for all modalities."""

from collections.abc import Mapping
from typing import Any

from selfdistill.errors import UserError
from selfdistill.modalities.block_names import BLOCK
from selfdistill.modalities.fairseq import ema_section, objective_section, require
from selfdistill.renaming import Pair, weight_and_bias


def shared_names(modality: str) -> list[Pair]:
    """Names of the blocks and the decoder.

    Args:
        modality: the original's word for it: AUDIO, IMAGE or TEXT.
    """
    encoder = f"modality_encoders.{modality}."
    return [
        *_block_names(BLOCK, "blocks.{}"),
        *_block_names("encoder.prenet.{}", f"{encoder}context_encoder.blocks.{{}}"),
        *weight_and_bias("decoder.convs.convs.{}", f"{encoder}decoder.blocks.{{}}.0"),
        *weight_and_bias("decoder.projection", f"{encoder}decoder.proj"),
        *weight_and_bias("decoder.projection.{}", f"{encoder}decoder.proj.{{}}"),
    ]


def _block_names(ours: str, theirs: str) -> list[Pair]:
    biases = tuple(f"{ours}.attention.{part}_bias" for part in "qkv")
    names: list[Pair] = [
        (f"{ours}.attention.qkv.weight", f"{theirs}.attn.qkv.weight"),
        (biases, f"{theirs}.attn.qkv.bias"),
        *weight_and_bias(f"{ours}.attention.proj", f"{theirs}.attn.proj"),
    ]
    for layer in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
        names += weight_and_bias(f"{ours}.{layer}", f"{theirs}.{layer}")
    return names


def own_settings(config: Mapping[str, Any], modality: str) -> Mapping[str, Any]:
    """The original's settings of one modality, by the key it has there: audio, image or text."""
    own: Mapping[str, Any] = config["modalities"][modality]
    for key in ("add_positions_masked", "add_positions_all"):
        require(own["decoder"], key, False, "the decoder's input has no positions")
    require(own, "local_grad_mult", 1.0, "the local encoder's gradient is not scaled")
    require(own, "keep_masked_pct", 0.0, "a masked token is never kept")
    require(own, "mask_channel_prob", 0.0, "no channels are masked")
    return own


def shared_sections(config: Mapping[str, Any], modality: str) -> dict[str, Any]:
    """Sections of ours for what the settings of all modalities share."""
    own = own_settings(config, modality)
    require(config, "layer_norm_first", False, "the original's pre-norm block drops its residual")
    require(config, "norm_affine", True, "norms have gains")
    require(config, "start_drop_path_rate", 0.0, "the rate rises from 0 at the first block")
    require(config, "recon_loss", 0.0, "nothing is reconstructed")
    require(config, "shared_decoder", None, "each modality has a decoder of its own")
    require(config, "post_mlp_drop", config["encoder_dropout"], "a block has one dropout rate")
    require(config, "dropout_input", 0.0, "local features are not dropped")
    width, weight = config["embed_dim"], config["d2v_loss"]
    if weight <= 0:
        raise UserError(
            f"original checkpoint: d2v_loss={weight} cannot be imported: targets are regressed"
        )
    objective = objective_section(config)
    if objective["loss_scale"] == "rsqrt_width" and weight != 1:
        objective["loss_scale"] = width**-0.5
    if weight != 1:
        objective["loss_scale"] *= weight
    return {
        "strategy": "visible",
        "encoder": {"prenet_depth": own["prenet_depth"]},
        "mask": {"num_masks": config["clone_batch"], "mask_prob": own["mask_prob"]},
        "model": {
            "width": width,
            "depth": config["depth"],
            "heads": config["num_heads"],
            "mlp_ratio": int(width * config["mlp_ratio"]) / width,
            "norm_eps": config["norm_eps"],
            "dropout": config["encoder_dropout"],
            "attention_dropout": config["attention_dropout"],
            "activation_dropout": config["activation_dropout"],
            "drop_path": config["end_drop_path_rate"],
            "layer_drop": config["layerdrop"],
        },
        "objective": {
            **objective,
            "target_from": "block" if config["end_of_block_targets"] else "ffn",
            "cls_loss": config["cls_loss"] / weight,
        },
        "decoder": _decoder_section(own),
        "teacher": {**ema_section(config), "scope": _scope(config, own)},
    }


def _decoder_section(own: Mapping[str, Any]) -> dict[str, Any]:
    theirs = own["decoder"]
    return {
        "width": theirs["decoder_dim"],
        "layers": theirs["decoder_layers"],
        "kernel": theirs["decoder_kernel"],
        "groups": theirs["decoder_groups"],
        "residual": theirs["decoder_residual"],
        "projection_layers": theirs["projection_layers"],
        "projection_ratio": float(theirs["projection_ratio"]),
        "input_dropout": theirs["input_dropout"],
        "mask_noise_std": own["mask_noise_std"],
    }


def _scope(config: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    if config["ema_encoder_only"]:
        return "blocks"
    return "all" if own["ema_local_encoder"] else "all_but_local"
