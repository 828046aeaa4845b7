"""Floating point operations of a training step: by formula, and as torch counts them."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from selfdistill.config import RunConfig
from selfdistill.modalities.base import load_modality
from selfdistill.models.flops import Counts, Flops, block, decoder, linear, projection
from selfdistill.models.stochastic_depth import StochasticDepth
from selfdistill.objective.head import head_widths
from selfdistill.objective.targets import layer_indices

RECOMPUTED = "recomputed"


def step_flops(
    parts: Mapping[str, RunConfig], micro_batches: Iterable[Mapping[str, Counts]]
) -> dict[str, float]:
    """Operations of one step on one process, by part of the step (``step_parts``).

    Args:
        parts: the prepared config of each modality.
        micro_batches: what each holds, by modality.

    Returns:
        ``backward`` is that of all parts. ``recomputed`` is what activation checkpointing computes
        once more in the backward pass; the model needs it not.
    """
    found: dict[str, float] = {}
    for counts in micro_batches:
        for name, own in counts.items():
            forward, again = _modality(parts[name], own)
            for part, flops in forward.items():
                found[part] = found.get(part, 0.0) + flops.forward
                found["backward"] = found.get("backward", 0.0) + flops.backward
            if parts[name].train.activation_checkpointing:
                found[RECOMPUTED] = found.get(RECOMPUTED, 0.0) + again
    return found


def _modality(config: RunConfig, counts: Counts) -> tuple[dict[str, Flops], float]:
    """Of each part, and of the forward pass of all that can be recomputed."""
    model, prenet = config.model, config.encoder.prenet_depth
    encoder = load_modality(config.modality).flops(config, counts)
    places = counts.rows * counts.masked

    taught = prenet + max(layer_indices(config.objective, model.depth)) + 1
    teacher = block(model, counts.samples, counts.prefix + counts.tokens) * taught + encoder.teacher
    if config.teacher.scope == "all":
        teacher += encoder.embed

    student = _student(config, counts) + encoder.student
    again = student.forward + encoder.regions.forward
    if config.strategy == "visible":
        convs, last = decoder(config.decoder, model.width, counts)
        again += convs.forward
        predictor = convs + last
    else:
        predictor = projection(places, head_widths(config.objective, model.width))
    forward = {
        "feature_encoder": encoder.embed,
        "teacher": teacher.without_gradient(),
        "student": student,
        "decoder": predictor,
        # second moments of targets and predictions
        "figures": linear(places, model.width, model.width).without_gradient() * 2,
    }
    return forward, again


def _student(config: RunConfig, counts: Counts) -> Flops:
    """Of all blocks. What chance leaves out costs nothing: this is the mean over many steps."""
    model, rows, prefix = config.model, counts.rows, counts.prefix
    visible = config.strategy == "visible"
    seen = prefix + (counts.visible if visible else counts.tokens)
    found = block(model, rows, seen) * config.encoder.prenet_depth
    for number, rate in enumerate(StochasticDepth(model).rates, start=1):
        only = prefix + counts.masked if number == model.depth and not visible else None
        found += block(model, rows, seen, only, rate) * (1 - model.layer_drop)
    return found


def counted_flops(run: Callable[[], object]) -> float:
    """Operations of matrix products and convolutions that torch sees while ``run`` runs."""
    with FlopCounterMode(display=False, custom_mapping=_mapping()) as counter:
        run()
    return float(counter.get_total_flops())


def _mapping() -> dict[Any, Callable[..., int]]:
    """What torch's counter does not know, or counts otherwise."""
    aten, own = torch.ops.aten, torch.ops.selfdistill
    backward = (
        "_scaled_dot_product_flash_attention_for_cpu_backward",
        "_scaled_dot_product_flash_attention_backward",
        "_scaled_dot_product_efficient_attention_backward",
        "_scaled_dot_product_cudnn_attention_backward",
    )
    return {
        aten.baddbmm_: _added_products,
        aten.convolution_backward: _convolution_backward,
        aten._scaled_dot_product_flash_attention_for_cpu: _attention,
        **{getattr(aten, name): _attention_backward for name in backward},
        own.tiled_attention: _attention,
        own.tiled_attention_backward: _attention_backward,
    }


def _added_products(_: Any, first: Any, second: Any, *__: Any, **___: Any) -> int:
    return 2 * torch.Size(first).numel() * int(second[-1])


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    batch, heads, queries, width = query
    return 2 * batch * heads * queries * key[2] * (width + value[-1])


def _attention_backward(_: Any, query: Any, key: Any, value: Any, *__: Any, **___: Any) -> int:
    """Without the logits that a fused kernel computes once more: as if it kept them."""
    return 2 * _attention(query, key, value)


def _convolution_backward(gradient: Any, inputs: Any, weight: Any, *others: Any, **_: Any) -> int:
    """Each gradient costs as much as the forward pass; torch's own formula forgets that the
    weights' gradient has groups."""
    transposed, wanted = others[4], others[7]
    places = (inputs if transposed else gradient)[2:].numel()
    forward = 2 * inputs[0] * places * torch.Size(weight).numel()
    return forward * (wanted[0] + wanted[1])
