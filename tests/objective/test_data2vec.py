"""The training module: gradients, padding, several masks, class loss, precision."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from encoder_cases import (
    CASES,
    PADDED,
    PLAIN,
    batch_of,
    config_of,
    mask_of,
    modality_of,
    randomised,
    row_of,
)
from modality_cases import MODALITIES, MODALITY_CASES

from selfdistill.config import RunConfig
from selfdistill.modalities.backbone import Backbone
from selfdistill.models.block import Block
from selfdistill.objective.data2vec import Data2Vec, StepOutput
from selfdistill.objective.moments import variance_over_samples
from selfdistill.types import Batch, Masks, Tokens

Make = Callable[..., RunConfig]
STRATEGIES = ["dense", "visible"]
SILENT = {"mask_noise_std": 0.0, "width": 8, "groups": 4, "layers": 2, "kernel": 3}
"""A decoder without chance."""


def build(config: RunConfig) -> Data2Vec:
    torch.manual_seed(0)
    return randomised(Data2Vec(config))


def small(case: str, tiny_config: Make, **changes: Any) -> Data2Vec:
    return build(config_of(case, tiny_config, **{"decoder": SILENT, **changes}))


def step_of(model: Data2Vec, batch: Batch) -> StepOutput:
    """Of a run over one modality."""
    (name,) = model.parts
    return model({name: batch})[name]


def student_of(model: Data2Vec) -> Backbone:
    (name,) = model.parts
    return model.student[name]


def gradients(model: Data2Vec) -> dict[str, torch.Tensor]:
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("case", [case for case in CASES if modality_of(case) in PADDED])
def test_padding_changes_nothing(case: str, strategy: str, tiny_config: Make) -> None:
    """Loss and gradient of a padded batch are the sums of its rows' alone."""
    modality = modality_of(case)
    model = small(case, tiny_config, strategy=strategy)
    batch = batch_of(modality, num_masks=2)
    whole = step_of(model, batch)
    whole.loss.backward()
    of_whole = gradients(model)
    rows = [step_of(model, row_of(batch, modality, row)) for row in range(3)]
    sum(row.loss for row in rows).backward()
    torch.testing.assert_close(whole.loss, sum(row.loss for row in rows), rtol=1e-5, atol=0)
    assert float(whole.tokens) == sum(float(row.tokens) for row in rows)
    of_rows = gradients(model)
    assert of_rows.keys() == of_whole.keys()
    for name, gradient in of_rows.items():
        torch.testing.assert_close(gradient, of_whole[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("flag", "strategy"),
    [
        ("padding_in_target_statistics", "dense"),
        ("padding_in_positions", "dense"),
        ("padding_in_features", "dense"),
        ("padding_in_features", "visible"),
    ],
)
def test_the_originals_let_padding_in(flag: str, strategy: str, tiny_config: Make) -> None:
    batch = batch_of("audio")
    right = step_of(small("audio", tiny_config, strategy=strategy), batch).loss
    leaking = small("audio", tiny_config, strategy=strategy, compat={flag: True})
    assert not torch.allclose(step_of(leaking, batch).loss, right, rtol=3e-5)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("case", CASES)
def test_every_trainable_parameter_gets_a_gradient(
    case: str, strategy: str, tiny_config: Make
) -> None:
    prefix = "without" not in case and modality_of(case) == "image"
    changes: dict[str, Any] = {"objective": {"cls_loss": 0.5}} if prefix else {}
    encoder = {**CASES[case].get("encoder", {}), "prenet_depth": 1}
    model = small(case, tiny_config, strategy=strategy, encoder=encoder, **changes)
    step_of(model, batch_of(modality_of(case), num_masks=2)).loss.backward()
    for name, parameter in model.named_parameters():
        if name.startswith("teacher."):
            assert parameter.grad is None
        else:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all()
            # keys' bias moves all logits of a query alike
            known = name.endswith("k_bias") or parameter.numel() == 0
            assert parameter.grad.any() or known, name
    has_token = any(name.endswith("mask_token") for name, _ in model.named_parameters())
    assert has_token == (strategy == "dense" and MODALITY_CASES[modality_of(case)].has_mask_token)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("modality", MODALITIES)
def test_what_a_step_tells(modality: str, strategy: str, tiny_config: Make) -> None:
    model = small(PLAIN[modality], tiny_config, strategy=strategy)
    batch = batch_of(modality, num_masks=2)
    assert batch.masks is not None
    step = step_of(model, batch)
    count = int(batch.masks.masked.sum())
    tokens = 2 * sum(MODALITY_CASES[modality].tokens)
    assert float(step.tokens) == float(step.targets.size) == float(step.predictions.size) == count
    assert float(step.valid) == tokens
    assert step.teacher_norms.shape == (model.parts[modality].model.depth,)
    assert (step.teacher_norms > 0).all()
    assert step.loss.dtype == torch.float32
    assert step.loss.ndim == 0


@pytest.mark.parametrize("modality", PADDED)
def test_padding_has_no_part_in_the_teacher_s_norms(modality: str, tiny_config: Make) -> None:
    model, batch = small(PLAIN[modality], tiny_config), batch_of(modality)
    rows = [step_of(model, row_of(batch, modality, row)).teacher_norms for row in range(3)]
    torch.testing.assert_close(step_of(model, batch).teacher_norms, sum(rows))


def test_the_teacher_s_norms_count_once_for_each_mask(tiny_config: Make) -> None:
    """As the tokens do that they are divided by."""
    model, batch = small("text", tiny_config), batch_of("text", num_masks=3)
    of_one = step_of(model, mask_of(batch, "text", 0)).teacher_norms
    torch.testing.assert_close(step_of(model, batch).teacher_norms, 3 * of_one)


def test_filled_up_places_have_no_part_in_the_error(tiny_config: Make) -> None:
    """Which is the loss where that is the squared distance."""
    objective = {"loss_beta": 0.0, "loss_scale": 1.0}
    step = step_of(small("text", tiny_config, objective=objective), batch_of("text"))
    torch.testing.assert_close(step.error, step.loss)


def test_padding_has_no_part_in_the_variance_over_samples(tiny_config: Make) -> None:
    model, batch = small("text", tiny_config), batch_of("text")
    local = student_of(model).encoder.embed(batch.inputs, batch.lengths)
    targets = model.teacher("text", batch, local, model.student)
    expected = variance_over_samples(targets, local.padding)
    torch.testing.assert_close(step_of(model, batch).sample_variance, expected)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("modality", MODALITIES)
def test_the_student_does_not_see_what_is_masked(
    modality: str, strategy: str, tiny_config: Make
) -> None:
    model, batch = small(PLAIN[modality], tiny_config, strategy=strategy), batch_of(modality)
    assert batch.masks is not None
    student = student_of(model)
    encoder, predictor = student.encoder, model.predictors[modality]
    local = encoder.embed(batch.inputs, batch.lengths)
    x = local.x.clone()
    x[batch.masks.masked] = 100.0
    changed = Tokens(x, local.padding)
    found = predictor(student, changed, batch.masks)
    expected = predictor(student, local, batch.masks)
    assert torch.equal(found.masked, expected.masked)
    assert torch.equal(found.prefix, expected.prefix)
    assert not torch.equal(student(encoder.locate(local)), student(encoder.locate(changed)))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("modality", MODALITIES)
def test_several_masks_are_as_many_runs_with_one(
    modality: str, strategy: str, tiny_config: Make
) -> None:
    """The loss is the mean of theirs, each weighed by its masked tokens."""
    model = small(PLAIN[modality], tiny_config, strategy=strategy)
    batch = batch_of(modality, num_masks=3)
    whole = step_of(model, batch)
    whole.loss.backward()
    of_whole = gradients(model)
    singles = [step_of(model, mask_of(batch, modality, number)) for number in range(3)]
    assert len({float(single.tokens) for single in singles}) > 1
    tokens = sum(single.tokens for single in singles)
    mean = sum(single.loss / single.tokens * (single.tokens / tokens) for single in singles)
    torch.testing.assert_close(whole.loss / whole.tokens, mean)
    sum(single.loss for single in singles).backward()
    of_singles = gradients(model)
    assert of_singles.keys() == of_whole.keys()
    for name, gradient in of_singles.items():
        torch.testing.assert_close(of_whole[name], gradient, rtol=1e-4, atol=1e-5)


WEIGHT = 0.3
WITH_CLASS_TOKENS = [case for case in CASES if case[:5] == "image" and "without" not in case]


def class_part(model: Data2Vec, batch: Batch) -> float:
    """What the class token adds to the loss of a masked token."""
    step = step_of(model, batch)
    assert batch.masks is not None
    student, masks = student_of(model), batch.masks
    local = student.encoder.embed(batch.inputs, None)
    targets = masks.gather(model.teacher("image", batch, local, model.student))
    predictions = model.predictors["image"](student, local, masks).masked
    rest = ((predictions - targets).square().sum(-1) * masks.weight).sum() * 16**-0.5
    return float((step.loss - rest) / step.tokens)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("case", WITH_CLASS_TOKENS)
@torch.no_grad()
def test_the_class_token_predicts_the_mean_target(
    case: str, strategy: str, tiny_config: Make
) -> None:
    objective = {"cls_loss": WEIGHT, "loss_beta": 0.0}
    model = small(case, tiny_config, strategy=strategy, objective=objective)
    batch = batch_of("image", num_masks=2)
    assert batch.masks is not None
    student = student_of(model)
    local = student.encoder.embed(batch.inputs, None)
    targets = model.teacher("image", batch, local, model.student).mean(1)  # [B, D]
    prefix = model.predictors["image"](student, local, batch.masks).prefix
    losses = [(prefix[row, -1] - targets[row // 2]).square().sum() * 16**-0.5 for row in range(6)]
    assert class_part(model, batch) == pytest.approx(WEIGHT * float(sum(losses)) / 6, rel=1e-4)


@pytest.mark.parametrize(("summed", "factor"), [(False, 1), (True, 3)])
@torch.no_grad()
def test_its_weight_depends_on_the_batch_in_the_original_only(
    summed: bool, factor: int, tiny_config: Make
) -> None:
    objective, compat = {"cls_loss": WEIGHT, "loss_beta": 0.0}, {"summed_class_loss": summed}
    model = small("image, learned", tiny_config, objective=objective, compat=compat)
    batch = batch_of("image", num_masks=2)
    assert batch.masks is not None
    masks = Masks.from_bool(batch.masks.masked.repeat(3, 1))
    thrice = Batch(batch.inputs.repeat(3, 1, 1, 1), masks=masks)
    once = class_part(model, batch)
    assert once > 0.01
    assert class_part(model, thrice) == pytest.approx(factor * once, rel=1e-3)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("modality", MODALITIES)
def test_the_loss_is_float32_under_autocast(
    modality: str, strategy: str, tiny_config: Make
) -> None:
    model, batch = small(PLAIN[modality], tiny_config, strategy=strategy), batch_of(modality, 2)
    exact = step_of(model, batch).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = step_of(model, batch).loss
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, rtol=0.05, atol=0)
    assert not torch.equal(rounded, exact)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_blocks_add_in_float32_under_autocast(case: str, strategy: str, tiny_config: Make) -> None:
    """The student's and the teacher's."""
    model = small(case, tiny_config, strategy=strategy, encoder={"prenet_depth": 1})
    added: dict[str, set[torch.dtype]] = {"student": set(), "teacher": set()}

    def watch(name: str, block: Block) -> None:
        dtypes = added[name.partition(".")[0]]
        block.register_forward_hook(lambda _, x, y: dtypes.update((x[0].dtype, y.x.dtype)))

    for name, module in model.named_modules():
        if isinstance(module, Block):
            watch(name, module)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        step_of(model, batch_of(modality_of(case), 2))
    assert added == {"student": {torch.float32}, "teacher": {torch.float32}}


@torch.no_grad()
def test_blocks_of_a_small_layer_scale_are_not_lost_under_autocast(tiny_config: Make) -> None:
    """At the published 1e-4 what a block adds is less than the last digit of half precision."""

    def features(gain: float, half: bool) -> torch.Tensor:
        model = small("image, relative", tiny_config)
        for name, parameter in model.named_parameters():
            if name.endswith("gamma"):
                parameter.fill_(gain)
        batch = batch_of("image")
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            return student_of(model).hidden_states(batch.inputs)[0][-1].float()

    exact, rounded = (features(1e-4, half) - features(0.0, half) for half in (False, True))
    assert exact.any()
    torch.testing.assert_close(rounded, exact, rtol=0.05, atol=0.02 * float(exact.abs().max()))


@pytest.mark.parametrize("prenet_depth", [0, 2])
@pytest.mark.parametrize("modality", MODALITIES)
def test_features_to_read_out_are_the_unmasked_layers(
    modality: str, prenet_depth: int, tiny_config: Make
) -> None:
    """And the modality's own, where it has such."""
    encoder = {"prenet_depth": prenet_depth}
    model, batch = small(PLAIN[modality], tiny_config, encoder=encoder).eval(), batch_of(modality)
    student = student_of(model)
    states, padding = student.hidden_states(batch.inputs, batch.lengths)
    local = student.encoder.embed(batch.inputs, batch.lengths)
    outputs = [output.x for output in student.layers(local)]
    assert len(outputs) == 3
    assert len(states) == 1 + prenet_depth + 3
    for state, output in zip(states[-3:], outputs, strict=True):
        torch.testing.assert_close(state, output)
    assert (padding is None) == (modality == "image")
