"""Hidden states of the package's encoder and of transformers' model, side by side."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selfdistill.config import RunConfig
from selfdistill.data.locations import resolve
from selfdistill.data.shards import ShardSet
from selfdistill.hub.writer import hub_tensors, texts_of, write_folder
from selfdistill.modalities.backbone import build_backbone
from selfdistill.modalities.base import load_modality
from selfdistill.modalities.image.pixels import normalised
from selfdistill.modalities.text.tokenizer import PAD_ID
from selfdistill.pretrained import Pretrained
from selfdistill.types import Batch

INPUT = {"audio": "input_values", "image": "pixel_values", "text": "input_ids"}
PREFIX = {"audio": 0, "image": 1, "text": 0}
"""transformers keeps the class token in front."""


@cache
def shipped(name: str) -> ShardSet:
    """Samples of the package, such as ``audio/train``, with all that a member may be."""
    extensions = ("opus", "png", "txt")
    return ShardSet(resolve([f"sample://{name}.tar.gz"]), extensions)


def examples(found: Pretrained, count: int) -> list[np.ndarray]:
    """The first shipped samples as the package prepares them."""
    pipeline = found.modality.build_pipeline(found.config)
    samples = [shipped(f"{found.modality.name}/train").read(index)[1] for index in range(count)]
    return [pipeline.plain(pipeline.decode(sample)) for sample in samples]


def collate(found: Pretrained, rows: list[np.ndarray]) -> Batch:
    return found.modality.build_pipeline(found.config).collate(rows, None)


def arguments(
    config: RunConfig, batch: Batch, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """What transformers' model takes for a batch of ours."""
    modality, inputs = config.modality, batch.inputs
    if modality == "image":
        exact = torch.promote_types(dtype, torch.float32)
        mean, std = (torch.tensor(v).to(exact) for v in (config.input.mean, config.input.std))
        inputs = normalised(inputs, mean, std)
    given = {INPUT[modality]: inputs.to(dtype) if inputs.is_floating_point() else inputs}
    if batch.lengths is not None and modality == "text":
        given["attention_mask"] = (batch.inputs != PAD_ID).long()
    elif batch.lengths is not None:
        given["attention_mask"] = (
            torch.arange(batch.inputs.shape[1]) < batch.lengths[:, None]
        ).long()
    return given


def drawn(config: RunConfig, companions: Path, folder: Path) -> Pretrained:
    """An encoder whose every parameter is far from where training begins, exported to ``folder``.

    Args:
        companions: of a run, whose tokenizer is taken.
    """
    modality = load_modality(config.modality)
    assert modality.hub is not None
    config = modality.attach(config, companions)
    torch.manual_seed(0)
    backbone = build_backbone(config).eval()
    for parameter in backbone.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    tensors = hub_tensors(modality.hub, config, dict(backbone.named_parameters()))
    write_folder(folder, tensors, texts_of(modality.hub, config, companions, "# drawn\n"))
    return Pretrained(modality, config, config, backbone, folder, companions, "student", None)


@torch.no_grad()
def hidden_states(model: Any, modality: str, **given: Tensor) -> list[Tensor]:
    """Of transformers' model, depth + 1 tensors [B, T, D] without the class token."""
    states = model(**given, output_hidden_states=True).hidden_states
    return [state[:, PREFIX[modality] :] for state in states]


def difference(ours: list[Tensor], theirs: list[Tensor], padding: Tensor | None = None) -> float:
    """The largest one over all layers, where ``padding`` [B, T] is not."""
    assert [a.shape for a in ours] == [b.shape for b in theirs]
    return _largest([a.double() - b.double() for a, b in zip(ours, theirs, strict=True)], padding)


def relative_difference(
    ours: list[Tensor], theirs: list[Tensor], padding: Tensor | None = None
) -> float:
    """``difference`` as a share of the largest state."""
    return difference(ours, theirs, padding) / _largest(ours, padding)


def _largest(states: list[Tensor], padding: Tensor | None) -> float:
    per_token = torch.stack([state.abs().amax(dim=-1) for state in states])  # [layers, B, T]
    return float(per_token[:, ... if padding is None else ~padding].max())
