"""Encoders with every kind of positions, and batches with masks for them."""

from collections.abc import Callable
from typing import Any

import torch
from modality_cases import MODALITY_CASES, Sections
from torch import nn

from selfdistill.config import RunConfig
from selfdistill.types import Batch, Masks

Make = Callable[..., RunConfig]
PADDED = tuple(name for name, case in MODALITY_CASES.items() if case.lengths)

CASES: dict[str, Sections] = {
    f"{name}, {kind}" if kind else name: sections
    for name, case in MODALITY_CASES.items()
    for kind, sections in case.encoders.items()
}
"""By modality and kind."""


def modality_of(case: str) -> str:
    return case.split(",")[0]


PLAIN = {modality_of(case): case for case in reversed(CASES)}
"""Modality to the first of its cases."""


def config_of(case: str, tiny_config: Make, **changes: Any) -> RunConfig:
    """The config of a case.

    Args:
        changes: sections, or values of keys beside them, that come on top.
    """
    given: dict[str, Any] = {}
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
    """Three samples, of three lengths if ``padded`` and where there are lengths."""
    case, lengths = MODALITY_CASES[modality], None
    inputs = case.inputs(torch.Generator().manual_seed(seed + 1))
    tokens = [max(case.tokens)] * 3
    if padded and case.lengths is not None:
        tokens, lengths = case.tokens, torch.tensor(case.lengths)
        inputs[torch.arange(inputs.shape[1]) >= lengths[:, None]] = case.padding
    return Batch(inputs, lengths, masks_of(tokens, num_masks, seed))


def row_of(batch: Batch, modality: str, row: int) -> Batch:
    """One sample of a batch with its masks, without padding."""
    assert batch.masks is not None
    inputs, tokens = batch.inputs[row : row + 1], batch.masks.masked.shape[1]
    if batch.lengths is not None:
        inputs, tokens = inputs[:, : batch.lengths[row]], MODALITY_CASES[modality].tokens[row]
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
        tokens = torch.tensor(MODALITY_CASES[modality].tokens)
        valid = torch.arange(masked.shape[1]) < tokens[:, None]
    return Batch(batch.inputs, batch.lengths, Masks.from_bool(masked, valid))
