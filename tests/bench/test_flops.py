"""The operations of a step by formula are those that torch counts while it runs."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from encoder_cases import CASES, PLAIN, batch_of, config_of, modality_of
from torch import nn

from selfdistill.bench import flops
from selfdistill.bench.flops import RECOMPUTED, counted_flops, step_flops
from selfdistill.config import ModelConfig, RunConfig
from selfdistill.modalities.base import load_modality
from selfdistill.models import attention
from selfdistill.models.conv import ConvStack
from selfdistill.models.flops import Counts, EncoderFlops, Flops, block, conv_stack
from selfdistill.models.region import prepare_regions
from selfdistill.objective.data2vec import Data2Vec

STRATEGIES = ("dense", "visible")


def both(config: RunConfig, padded: bool = True) -> tuple[dict[str, float], float]:
    """Of one step: by formula, and as torch counts them."""
    (name,) = config.parts()
    model = Data2Vec(config)
    prepare_regions(model, config.train.activation_checkpointing, compiled=False)
    batch = batch_of(name, config.mask.num_masks, padded)
    encoder = model.student.encoder(name)
    counts = Counts.of(batch, encoder.num_prefix_tokens, encoder.grid)
    counted = counted_flops(lambda: model({name: batch})[name].loss.backward())
    return step_flops(config.parts(), [{name: counts}]), counted


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("case", CASES)
def test_formulas_are_what_torch_counts(case: str, strategy: str, tiny_config: Any) -> None:
    config = config_of(case, tiny_config, strategy=strategy, mask={"num_masks": 2})
    found, counted = both(config)
    assert sum(found.values()) == pytest.approx(counted, rel=0.01)
    assert (found["feature_encoder"] == 0) == (modality_of(case) == "text")


@pytest.mark.parametrize("case", PLAIN.values())
@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"dropout": 0.1, "attention_dropout": 0.1}},  # no fused attention
        {"teacher": {"scope": "all"}},
        {"teacher": {"scope": "blocks"}},
        {"objective": {"target_layers": [0]}},  # the teacher need not run to its end
        {"encoder": {"prenet_depth": 2}},
        {"objective": {"head_layers": 3}, "decoder": {"projection_layers": 3}},
        {"model": {"drop_path": 2 / 3}},  # of three rows all, two and one keep a branch
    ],
)
def test_every_choice_counts(case: str, changes: dict[str, Any], tiny_config: Any) -> None:
    for strategy in STRATEGIES:
        found, counted = both(config_of(case, tiny_config, strategy=strategy, **changes))
        assert sum(found.values()) == pytest.approx(counted, rel=0.02)


@pytest.mark.parametrize("case", CASES)
def test_attention_in_tiles_counts_as_any_other(
    case: str, tiny_config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(case, tiny_config, model={"attention_dropout": 0.1})
    monkeypatch.setattr(attention, "TILE_BYTES", 1)
    found, counted = both(config)
    assert sum(found.values()) == pytest.approx(counted, rel=0.02)


@pytest.mark.parametrize("case", PLAIN.values())
def test_what_is_computed_once_more_is_told_apart(case: str, tiny_config: Any) -> None:
    plain, _ = both(config_of(case, tiny_config, strategy="visible"))
    again = {"train": {"activation_checkpointing": True}}
    found, counted = both(config_of(case, tiny_config, strategy="visible", **again))
    assert sum(found.values()) == pytest.approx(counted, rel=0.05)
    assert found.pop(RECOMPUTED) > 0.5 * found["student"]
    assert found == plain


def test_dropped_layers_count_on_average(tiny_config: Any) -> None:
    config = config_of("text", tiny_config)
    whole, _ = both(config)
    half, _ = both(config_of("text", tiny_config, model={"layer_drop": 0.5}))
    assert half["student"] == pytest.approx(0.5 * whole["student"])
    assert half["teacher"] == whole["teacher"]


def test_micro_batches_and_modalities_add_up(tiny_config: Any) -> None:
    parts = {
        modality_of(case): config_of(case, tiny_config) for case in ("image, relative", "text")
    }
    counts = {
        "image": Counts((3, 3, 32, 32), 3, 16, 10, 6, prefix=1, grid=(4, 4)),
        "text": Counts((3, 11), 3, 11, 8, 5),
    }
    one = [step_flops({n: parts[n]}, [{n: counts[n]}]) for n in parts]
    every = step_flops(parts, [counts, counts])
    assert every == pytest.approx({key: 2 * sum(o[key] for o in one) for key in one[0]})


def test_a_modality_brings_its_own(tiny_config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of("text", tiny_config, teacher={"scope": "all"})
    counts = Counts((3, 11), 3, 11, 8, 5)
    before = step_flops({"text": config}, [{"text": counts}])
    own = EncoderFlops(Flops(1e9, 2e9), Flops(1e10, 3e10), Flops(1e11, 5e11))
    brought = replace(load_modality("text"), flops=lambda config, counts: own)
    monkeypatch.setattr(flops, "load_modality", lambda name: brought)
    after = step_flops({"text": config}, [{"text": counts}])
    gained = {part: after[part] - before[part] for part in after}
    wanted = {"feature_encoder": 1e9, "student": 1e10, "teacher": 1.01e11, "backward": 3.2e10}
    assert gained == pytest.approx(wanted | {"decoder": 0, "figures": 0})


def test_known_numbers() -> None:
    """A ViT-B/16 with a class token has 17.6 GMAC (arXiv 2106.10270), nearly all in its blocks."""
    whole = block(ModelConfig(), 1, 197) * 12
    assert whole.forward / 2 == pytest.approx(17.45e9, rel=0.01)
    assert whole.backward == 2 * whole.forward


@pytest.mark.parametrize("grid", [None, (5, 5)])
def test_grouped_convolutions(grid: tuple[int, int] | None) -> None:
    """torch's formula for the weights' gradient forgets the groups."""
    stack = ConvStack([8, 8, 16], kernel=4, groups=4, residual=False, grid=grid)
    x = nn.Parameter(torch.randn(3, 25, 8))
    counted = counted_flops(lambda: stack(x).sum().backward())
    found = conv_stack(3, 25, [8, 8, 16], 4, 4, grid)
    assert found.forward + found.backward == counted
