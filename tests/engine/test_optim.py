"""Weight decay groups, steps not taken, and learning rates against values recorded from fairseq."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from timm.scheduler.scheduler import Scheduler
from torch import nn

from selfdistill.config import OptimConfig
from selfdistill.engine.optim import build_optimizer, build_scheduler, step_where

# facebookresearch/fairseq, commit 3d262bb25690e4eb2e7d3c1309b1e9c406ca4b99, 1,000 updates
COSINE = {
    0: 0.0,
    1: 2e-05,
    25: 0.0005,
    49: 0.0009800000000000002,
    50: 0.001,
    51: 0.0009999972660400536,
    54: 0.000999956257238817,
    100: 0.0009931806517013613,
    500: 0.0005412896727361663,
    999: 2.7339599464326623e-09,
}
TRI_STAGE = {
    0: 5e-06,
    1: 2.15e-05,
    29: 0.00048350000000000004,
    30: 0.0005,
    500: 0.0005,
    930: 0.0005,
    931: 0.00046816460441197075,
    950: 0.0001341347897639863,
    999: 5.340002162572878e-06,
    1000: 5.000000000000002e-06,
    1001: 5e-06,
}


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.norm = nn.LayerNorm(3)
        self.mask_token = nn.Parameter(torch.ones(1, 3))
        self.two_dimensional = nn.Module()
        self.two_dimensional.bias = nn.Parameter(torch.ones(2, 3))
        self.frozen = nn.Linear(3, 3).requires_grad_(False)


def decay_by_name(model: nn.Module, optim: OptimConfig) -> dict[str, float]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = build_optimizer(model, optim).param_groups
    return {names[p]: group["weight_decay"] for group in groups for p in group["params"]}


@pytest.mark.parametrize(
    ("settings", "decayed"),
    [
        ({}, {"linear.weight", "mask_token"}),
        ({"no_decay": ["mask_*"]}, {"linear.weight"}),
        ({"no_decay": ["*.weight"]}, {"mask_token"}),
        (
            {"no_decay": ["mask_token", "norm.*"], "decay_one_dimensional": True},
            {"linear.weight", "linear.bias", "two_dimensional.bias"},
        ),
    ],
)
def test_which_parameters_decay(settings: dict, decayed: set[str]) -> None:
    optim = replace(OptimConfig(weight_decay=0.05, no_decay=[]), **settings)
    decays = decay_by_name(Model(), optim)
    assert set(decays) == {name for name, p in Model().named_parameters() if p.requires_grad}
    assert {name for name, decay in decays.items() if decay == 0.05} == decayed
    assert {decays[name] for name in set(decays) - decayed} == {0.0}


def test_default_patterns_spare_tokens_positions_and_relative_bias() -> None:
    model = nn.ModuleDict({"encoder": nn.Module(), "blocks": nn.Module()})
    model["blocks"].relative_bias = nn.Embedding(5, 2)
    model["encoder"].position_embedding = nn.Embedding(5, 2)
    model["encoder"].word_embedding = nn.Embedding(5, 2)
    for name in ("mask_token", "class_token"):
        setattr(model["encoder"], name, nn.Parameter(torch.ones(1, 2)))
    decays = decay_by_name(model, OptimConfig(weight_decay=0.05))
    assert [name for name, decay in decays.items() if decay] == ["encoder.word_embedding.weight"]


def test_optimiser_settings_and_fused_kernel() -> None:
    optim = OptimConfig(lr=0.02, betas=(0.8, 0.9), eps=1e-3)
    for group in build_optimizer(Model(), optim).param_groups:
        assert (group["lr"], group["betas"], group["eps"]) == (0.02, (0.8, 0.9), 1e-3)
        assert group["fused"]


def scheduled(optim: OptimConfig, steps: int = 1000) -> tuple[torch.optim.Optimizer, Scheduler]:
    optimizer = build_optimizer(Model(), optim)
    return optimizer, build_scheduler(optimizer, optim, steps)


def rates(optim: OptimConfig, at: list[int], steps: int = 1000) -> list[float]:
    optimizer, scheduler = scheduled(optim, steps)
    seen = []
    for step in at:
        scheduler.step_update(step)
        assert len({group["lr"] for group in optimizer.param_groups}) == 1
        seen.append(optimizer.param_groups[0]["lr"])
    return seen


def test_cosine_equals_the_recorded_one() -> None:
    optim = OptimConfig(lr=1e-3, schedule="cosine", warmup_steps=50)
    assert rates(optim, list(COSINE)) == pytest.approx(list(COSINE.values()), abs=1e-9, rel=0)


def test_cosine_ends_at_min_lr() -> None:
    optim = OptimConfig(lr=1e-3, min_lr=1e-5, schedule="cosine", warmup_steps=50)
    middle = (1e-3 + 1e-5) / 2
    assert rates(optim, [50, 525, 1000, 5000]) == pytest.approx([1e-3, middle, 1e-5, 1e-5])


def test_tri_stage_equals_the_recorded_one() -> None:
    optim = OptimConfig(lr=5e-4, schedule="tri_stage", phase_ratio=(0.03, 0.9, 0.07))
    assert rates(optim, list(TRI_STAGE)) == pytest.approx(list(TRI_STAGE.values()), rel=1e-6)


def test_tri_stage_without_warmup_or_decay() -> None:
    optim = OptimConfig(lr=1.0, schedule="tri_stage", phase_ratio=(0.0, 1.0, 0.0))
    assert rates(optim, [0, 9, 10], steps=10) == [1.0, 1.0, 0.01]


def test_constant() -> None:
    optim = OptimConfig(lr=1e-3, schedule="constant", warmup_steps=4)
    assert rates(optim, [0, 1, 4, 500, 2000]) == pytest.approx([0, 2.5e-4, 1e-3, 1e-3, 1e-3])
    assert rates(replace(optim, warmup_steps=0), [0]) == [1e-3]


@pytest.mark.parametrize("schedule", ["cosine", "tri_stage", "constant"])
def test_the_rate_depends_on_the_step_alone(schedule: Any) -> None:
    optim = OptimConfig(schedule=schedule, warmup_steps=0 if schedule == "tri_stage" else 10)
    through = rates(optim, list(range(100)), steps=100)
    assert len(set(through)) > 5 or schedule == "constant"
    assert [rates(optim, [step], steps=100)[0] for step in range(100)] == through


def test_the_config_decides_over_a_restored_rate() -> None:
    old, _ = scheduled(OptimConfig(lr=1e-3, schedule="constant"))
    saved = copy.deepcopy(old.state_dict())
    optim = OptimConfig(lr=2e-3, schedule="constant")
    optimizer = build_optimizer(Model(), optim)
    optimizer.load_state_dict(saved)
    build_scheduler(optimizer, optim, 1000).step_update(7)
    assert {group["lr"] for group in optimizer.param_groups} == {2e-3}


@pytest.mark.parametrize("scaled", [False, True])
def test_a_step_that_is_not_taken_leaves_no_trace(scaled: bool, accelerator: Accelerator) -> None:
    weights = {}
    for gradients in ([1.0, None, 2.0], [1.0, 2.0]):  # None: of a step that is left out
        parameter = nn.Parameter(torch.linspace(-1, 1, 5))
        inner = torch.optim.AdamW([parameter], lr=0.1, fused=True)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0) if scaled else None
        optimizer = AcceleratedOptimizer(inner, scaler=scaler)
        for gradient in gradients:
            parameter.grad = torch.full((5,), 9.0 if gradient is None else gradient)
            if scaler is not None:
                scaler.scale(torch.ones(()))  # it takes its first value from there
                parameter.grad *= scaler.get_scale()
                scaler.unscale_(inner)
            step_where(optimizer, torch.tensor(gradient is not None))
        state = inner.state[parameter]
        weights[len(gradients)] = [parameter.detach(), *(state[k] for k in sorted(state))]
    for found, expected in zip(weights[3], weights[2], strict=True):
        assert torch.equal(found, expected)
