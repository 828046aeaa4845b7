"""A step of training: its rate, its chance, what is clipped, and what it leaves as it was."""

import math
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from encoder_cases import batch_of, config_of
from torch import Tensor

from selfdistill.config import RunConfig
from selfdistill.data.ledger import Loaded
from selfdistill.engine.optim import build_optimizer, build_scheduler
from selfdistill.engine.step_judge import MIN_HISTORY, StepJudge
from selfdistill.engine.training_step import Step, TrainingStep
from selfdistill.objective.data2vec import Data2Vec
from selfdistill.types import Batch

Make = Callable[..., RunConfig]
Build = Callable[..., TrainingStep]


@pytest.fixture
def build(accelerator: Accelerator, tiny_config: Make) -> Build:
    """(SECTION={key: value}...) to what takes steps; teacher and student differ."""

    def make(**changes: Any) -> TrainingStep:
        config = config_of("image, relative", tiny_config, **changes)
        torch.manual_seed(0)
        model = Data2Vec(config)
        with torch.no_grad():
            for parameter in model.teacher.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        optimizer = build_optimizer(model, config.optim)
        judge = StepJudge(config.parts(), config.train.max_loss_jump, accelerator.device)
        return TrainingStep(
            model,
            accelerator.prepare_model(model),
            accelerator.prepare_optimizer(optimizer),
            build_scheduler(optimizer, config.optim, config.train.steps),
            judge,
            config,
            accelerator,
        )

    return make


def take(step: TrainingStep, number: int = 0) -> Step:
    """One step over one micro-batch."""
    return step(number, [{"image": Loaded(batch_of("image"), [], 3)}], void=False, logged=False)


def state_of(step: TrainingStep) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in step.plain_model.named_parameters()}


def changed(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> set[str]:
    """``student``, ``predictors`` and ``teacher``, whichever moved."""
    return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}


def test_the_teacher_moves_with_the_decay_of_its_step(build: Build) -> None:
    """That of step 1 lies half way between those of steps 0 and 2."""
    step = build(teacher={"ema_decay": 0.0, "ema_end_decay": 1.0, "ema_anneal_end_step": 2})
    before = state_of(step)
    take(step)
    after = state_of(step)
    for name in [name for name in before if name.startswith("teacher.")]:
        student = after[name.replace("teacher.", "student.", 1)]
        torch.testing.assert_close(after[name], (before[name] + student) / 2)


def test_the_optimiser_has_the_rate_of_its_step(build: Build) -> None:
    step, rates = build(optim={"lr": 0.4, "schedule": "constant", "warmup_steps": 4}), []

    def note(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        rates.append(optimizer.param_groups[0]["lr"])

    step.optimizer.optimizer.register_step_pre_hook(note)
    for number in (2, 0, 3):
        take(step, number)
    assert rates == pytest.approx([0.2, 0.0, 0.3])


def test_the_optimiser_has_clipped_gradients(build: Build) -> None:
    step, norms = build(optim={"clip_norm": 1e-3}), []

    def note(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        gradients = [p.grad for g in optimizer.param_groups for p in g["params"]]
        norms.append(float(torch.nn.utils.get_total_norm(gradients)))

    step.optimizer.optimizer.register_step_pre_hook(note)
    assert take(step).grad_norm > 0.01
    assert norms == pytest.approx([1e-3], rel=1e-3)


def test_no_gradient_is_left_for_the_next_step(build: Build) -> None:
    step = build()
    take(step)
    assert all(parameter.grad is None for parameter in step.plain_model.parameters())


class Drawn(Exception):
    """What rows and what blocks draw first in a step."""


def chances(step: TrainingStep) -> dict[tuple[int, int], tuple[float, float]]:
    """By step and process out of two."""

    def draw(batches: Mapping[str, Batch]) -> Any:
        blocks = step.plain_model.student.trunk.chance._chance.random()
        raise Drawn(float(torch.rand(())), float(blocks))

    step.model, found = draw, {}  # type: ignore[assignment]
    for number in range(3):
        for process in range(2):
            step.accelerator = SimpleNamespace(  # type: ignore[assignment]
                num_processes=2,
                process_index=process,
                device=torch.device("cpu"),
                reduce=lambda tensor, reduction: tensor,
            )
            with pytest.raises(Drawn) as caught:
                take(step, number)
            found[number, process] = caught.value.args
    return found


def test_rows_draw_anew_in_each_step_and_process(build: Build) -> None:
    assert len({rows for rows, _ in chances(build()).values()}) == 6


def test_blocks_draw_anew_in_each_step_but_alike_in_each_process(build: Build) -> None:
    found = {place: blocks for place, (_, blocks) in chances(build()).items()}
    assert len(set(found.values())) == 3
    assert all(found[number, 0] == found[number, 1] for number in range(3))


def test_a_step_that_is_left_out_moves_nothing(build: Build) -> None:
    step = build()
    before = state_of(step)
    step.judge.load_state({"image": [1e-9] * MIN_HISTORY})
    assert not take(step).taken
    assert changed(before, state_of(step)) == set()


def test_a_void_step_moves_nothing(build: Build) -> None:
    step = build()
    before = state_of(step)
    loaded = {"image": Loaded(batch_of("image"), [], 3)}
    found = step(0, [loaded], void=True, logged=False)
    assert not found.taken
    assert found.numbers[0] == 1
    assert changed(before, state_of(step)) == set()
    assert take(step).numbers[0] == 0


def test_a_step_that_is_taken_moves_all(build: Build) -> None:
    step = build()
    before = state_of(step)
    assert take(step).taken
    assert changed(before, state_of(step)) == {"student", "predictors", "teacher"}


def test_a_scaled_loss_that_overflows_moves_nothing(build: Build, accelerator: Accelerator) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=math.inf)
    accelerator.scaler = scaler
    step = build()
    step.optimizer.scaler = scaler
    before = state_of(step)
    assert not take(step).taken
    assert changed(before, state_of(step)) == set()


def test_a_scaled_loss_that_overflows_is_no_fault(build: Build, accelerator: Accelerator) -> None:
    """The scaler looks for the largest scale that does not."""
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=math.inf)
    step = build()
    step.optimizer.scaler = accelerator.scaler
    _, _, _, *verdict = take(step).numbers.tolist()
    assert step.judge.fault(verdict) == ""


def test_gradients_that_no_scale_helps_are_a_fault(build: Build, accelerator: Accelerator) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=0.5)
    accelerator.scaler = scaler
    step = build()
    step.optimizer.scaler = scaler
    # accelerate does so in fp16
    accelerator.unscale_gradients = lambda _=None: scaler.unscale_(step.optimizer.optimizer)  # type: ignore
    before = state_of(step)
    spoilt = next(step.plain_model.student.parameters())
    spoilt.register_hook(lambda gradient: gradient * math.inf)
    _, _, _, *verdict = take(step).numbers.tolist()
    assert step.judge.fault(verdict).startswith("the gradient's norm is")
    assert changed(before, state_of(step)) == set()
