"""Encoders with every kind of positions, and batches with masks for them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from selfdistill.config import RunConfig
from selfdistill.types import Batch, Masks

Make = Callable[..., RunConfig]
LENGTHS = {"audio": [205, 150, 92], "text": [11, 7, 4]}
TOKENS = {"audio": [9, 7, 4], "image": [16, 16, 16], "text": [11, 7, 4]}
PADDED = ("audio", "text")

SQUARE = {"size": [32, 32]}
CASES: dict[str, dict[str, Any]] = {
    "audio": {},
    "audio, alibi": {"encoder": {"alibi": True}},
    "audio, alibi of one scale": {"encoder": {"alibi": True, "alibi_per_head": False}},
    "audio, alibi per layer": {"encoder": {"alibi": True, "alibi_per_layer": True}},
    "audio, even kernels": {"encoder": {"position_width": 8}},
    "image, relative": {},
    "image, relative without a class token": {"encoder": {"num_extra_tokens": 0}},
    "image, block_relative": {"encoder": {"positions": "block_relative"}},
    "image, learned": {"encoder": {"positions": "learned", "context_norm": True}},
    "image, learned with two class tokens": {
        "encoder": {"positions": "learned", "num_extra_tokens": 2}
    },
    "image, sincos": {"encoder": {"positions": "sincos", "context_norm": True}},
    "image, sincos and post-norm": {
        "encoder": {"positions": "sincos"},
        "model": {"norm_order": "post", "layer_scale": 0.0, "key_bias": True},
    },
    "text": {},
    "text, two norms": {"encoder": {"context_norm": True}},
}
"""By modality and kind."""


def modality_of(case: str) -> str:
    return case.split(",")[0]


def config_of(case: str, tiny_config: Make, **changes: Any) -> RunConfig:
    """The config of a case; images are square.

    Args:
        changes: sections, or values of keys beside them, that come on top.
    """
    given: dict[str, Any] = {"input": SQUARE} if modality_of(case) == "image" else {}
    for source in (CASES[case], changes):
        for key, value in source.items():
            is_section = isinstance(value, dict)
            given[key] = {**given.get(key, {}), **value} if is_section else value
    return tiny_config(modality_of(case), **given)


def randomised(module: nn.Module, seed: int = 0) -> Any:
    """The module with every parameter off its first value."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return module


def masks_of(tokens: list[int], num_masks: int = 1, seed: int = 0) -> Masks:
    """Of another count in each row; rows have ``tokens`` valid ones and padding behind."""
    generator = torch.Generator().manual_seed(seed)
    masked = torch.zeros(len(tokens) * num_masks, max(tokens), dtype=torch.bool)
    for number, row in enumerate(masked):
        valid = tokens[number // num_masks]
        count = 1 + (2 * number + seed) % (valid - 1)
        row[torch.randperm(valid, generator=generator)[:count]] = True
    valid_tokens = torch.arange(max(tokens)) < torch.tensor(tokens)[:, None]
    return Masks.from_bool(masked, valid_tokens.repeat_interleave(num_masks, dim=0))


def batch_of(modality: str, num_masks: int = 1, padded: bool = True, seed: int = 0) -> Batch:
    """Three samples; of sound and text of three lengths if ``padded``."""
    padded = padded and modality in PADDED
    tokens = TOKENS[modality] if padded else [TOKENS[modality][0]] * 3
    generator = torch.Generator().manual_seed(seed + 1)
    if modality == "image":
        inputs = torch.randn(3, 3, 32, 32, generator=generator)
    elif modality == "audio":
        inputs = torch.randn(3, LENGTHS["audio"][0], generator=generator)
    else:
        inputs = torch.randint(5, 64, (3, LENGTHS["text"][0]), generator=generator)
    lengths = None
    if padded:
        lengths = torch.tensor(LENGTHS[modality])
        behind = torch.arange(inputs.shape[1]) >= lengths[:, None]
        inputs[behind] = 0 if modality == "audio" else 1
    return Batch(inputs, lengths, masks_of(tokens, num_masks, seed))


def row_of(batch: Batch, modality: str, row: int) -> Batch:
    """One sample of a batch with its masks, without padding."""
    assert batch.masks is not None
    inputs, tokens = batch.inputs[row : row + 1], batch.masks.masked.shape[1]
    if batch.lengths is not None:
        inputs, tokens = inputs[:, : LENGTHS[modality][row]], TOKENS[modality][row]
    num_masks = len(batch.masks.masked) // len(batch.inputs)
    masked = batch.masks.masked[row * num_masks : (row + 1) * num_masks, :tokens]
    return Batch(inputs, masks=Masks.from_bool(masked))


def really_visible(masks: Masks) -> torch.Tensor:
    """bool [R, V], False for what only fills up."""
    every = torch.ones_like(masks.visible, dtype=torch.bool)
    return every if masks.filler is None else ~masks.filler


def mask_of(batch: Batch, modality: str, number: int) -> Batch:
    """The batch with one of its masks per sample only."""
    assert batch.masks is not None
    masked = batch.masks.masked[number :: len(batch.masks.masked) // len(batch.inputs)]
    valid = None
    if batch.lengths is not None:
        valid = torch.arange(masked.shape[1]) < torch.tensor(TOKENS[modality])[:, None]
    return Batch(batch.inputs, batch.lengths, Masks.from_bool(masked, valid))
