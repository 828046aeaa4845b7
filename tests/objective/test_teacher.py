"""The teacher: a moving average with storage, precision and mode of its own."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from selfdistill.config import RunConfig
from selfdistill.errors import UserError
from selfdistill.modalities.base import load_modality
from selfdistill.objective.data2vec import Data2Vec
from selfdistill.types import Batch, Masks

Make = Callable[..., RunConfig]


def build(config: RunConfig) -> Data2Vec:
    torch.manual_seed(0)
    return Data2Vec(load_modality(config.modality), config)


def batch_of(modality: str) -> Batch:
    generator = torch.Generator().manual_seed(1)
    if modality == "audio":
        inputs, tokens = torch.randn(2, 205, generator=generator), 9
    elif modality == "image":
        inputs, tokens = torch.randn(2, 3, 24, 32, generator=generator), 12
    else:
        inputs, tokens = torch.randint(5, 64, (2, 9), generator=generator), 9
    masked = torch.zeros(2, tokens, dtype=torch.bool)
    masked[0, 2:5] = masked[1, 6:8] = True
    return Batch(inputs, masks=Masks.from_bool(masked))


def teacher_state(model: Data2Vec) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.teacher.backbone.named_parameters()}


def shake_student(model: Data2Vec) -> None:
    with torch.no_grad():
        for parameter in model.student.parameters():
            parameter.add_(torch.randn_like(parameter))


@pytest.fixture(params=["audio", "image", "text"])
def model(request: pytest.FixtureRequest, tiny_config: Make) -> Data2Vec:
    return build(tiny_config(request.param))


def test_it_starts_equal_in_storage_of_its_own(model: Data2Vec) -> None:
    student = dict(model.student.named_parameters())
    for name, parameter in model.teacher.backbone.named_parameters():
        assert torch.equal(parameter, student[name])
        assert parameter.data_ptr() != student[name].data_ptr()
        assert not parameter.requires_grad
    before = teacher_state(model)
    shake_student(model)
    assert all(torch.equal(value, before[name]) for name, value in teacher_state(model).items())


def test_it_stays_in_eval_mode(model: Data2Vec) -> None:
    model.train()
    assert model.student.training
    assert not any(module.training for module in model.teacher.modules())


def test_a_decay_of_zero_copies_and_of_one_freezes(model: Data2Vec) -> None:
    shake_student(model)
    before = teacher_state(model)
    model.update_teacher(1.0)
    assert all(torch.equal(value, before[name]) for name, value in teacher_state(model).items())
    model.update_teacher(0.0)
    student = dict(model.student.named_parameters())
    assert all(torch.equal(value, student[name]) for name, value in teacher_state(model).items())


def test_it_moves_by_one_minus_the_decay(model: Data2Vec) -> None:
    shake_student(model)
    before, student = teacher_state(model), dict(model.student.named_parameters())
    model.update_teacher(0.9)
    for name, value in teacher_state(model).items():
        torch.testing.assert_close(value, 0.9 * before[name] + 0.1 * student[name])


def test_copied_parts_follow_whatever_the_decay(tiny_config: Make) -> None:
    model = build(tiny_config("audio", teacher={"copied": ["encoder.positions"]}))
    shake_student(model)
    before, student = teacher_state(model), dict(model.student.named_parameters())
    model.update_teacher(1.0)
    after = teacher_state(model)
    copied = {name for name in after if name.startswith("encoder.positions.")}
    assert len(copied) == 4  # two convolutions with bias
    for name, value in after.items():
        assert torch.equal(value, student[name] if name in copied else before[name])


@pytest.mark.parametrize("part", ["encoder.position", "encoder.local", "nonsense"])
def test_an_unknown_part_is_refused(part: str, tiny_config: Make) -> None:
    # audio shares the local encoder, so the teacher has none
    config = tiny_config("audio", teacher={"copied": [part]})
    with pytest.raises(UserError, match=rf"teacher\.copied.*'{part}'.*encoder\.positions"):
        build(config)


def count_calls(model: Data2Vec) -> list[str]:
    calls: list[str] = []
    for name, backbone in (("student", model.student), ("teacher", model.teacher.backbone)):
        embed = backbone.encoder.embed

        def counted(*args: Any, name: str = name, embed: Any = embed) -> Any:
            calls.append(name)
            return embed(*args)

        backbone.encoder.embed = counted  # type: ignore[method-assign]
    return calls


def test_a_shared_feature_encoder_runs_once_per_step(tiny_config: Make) -> None:
    model = build(tiny_config("audio"))
    calls = count_calls(model)
    model(batch_of("audio"))
    assert calls == ["student"]
    assert not list(model.teacher.backbone.encoder.local.parameters())


def test_an_own_feature_encoder_is_used(tiny_config: Make) -> None:
    model = build(tiny_config("audio", teacher={"own_local_encoder": True}))
    calls = count_calls(model)
    model(batch_of("audio"))
    assert calls == ["student", "teacher"]


@pytest.mark.parametrize("modality", ["audio", "image", "text"])
def test_it_computes_in_float32_under_autocast(modality: str, tiny_config: Make) -> None:
    config = tiny_config(modality, teacher={"own_local_encoder": True})
    model, batch = build(config), batch_of(modality)
    local = model.student.encoder.embed(batch.inputs, None)
    expected = model.teacher(batch, local)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model.teacher(batch, local)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


def test_it_gives_targets_for_every_token_without_gradient(model: Data2Vec) -> None:
    modality = "image" if model.student.encoder.num_prefix_tokens else "audio"
    if model.student.encoder.local.__class__.__name__ == "Embedding":
        modality = "text"
    batch = batch_of(modality)
    local = model.student.encoder.embed(batch.inputs, None)
    targets = model.teacher(batch, local)
    assert targets.shape == local.x.shape
    assert not targets.requires_grad


def test_it_does_not_see_the_mask(tiny_config: Make) -> None:
    model, batch = build(tiny_config("text")), batch_of("text")
    local = model.student.encoder.embed(batch.inputs, None)
    other = Masks.from_bool(torch.arange(9).expand(2, 9) > 3)
    assert torch.equal(
        model.teacher(batch, local), model.teacher(Batch(batch.inputs, masks=other), local)
    )


def test_another_input_of_the_teacher_reaches_only_it(tiny_config: Make) -> None:
    model, batch = build(tiny_config("text")), batch_of("text")
    other = copy.copy(batch.inputs).flip(1)
    local = model.student.encoder.embed(batch.inputs, None)
    found = model.teacher(Batch(batch.inputs, teacher_inputs=other), local)
    expected = model.teacher(Batch(other), local)
    assert torch.equal(found, expected)
    assert not torch.allclose(found, model.teacher(batch, local))


@pytest.mark.parametrize("averaged", [True, False])
def test_integer_buffers_move_only_as_a_replay_asks(averaged: bool, tiny_config: Make) -> None:
    model = build(tiny_config("image", compat={"averaged_index_buffers": averaged}))
    index = model.teacher.backbone.encoder.relative_bias.relative_position_index
    before = index.clone()
    model.update_teacher(0.96)  # which rounds below some of the integers
    assert torch.equal(index, before) != averaged


def test_distance_is_that_of_the_averaged_weights(tiny_config: Callable[..., RunConfig]) -> None:
    config = tiny_config("audio", teacher={"copied": ["encoder.positions"]})
    model = Data2Vec(load_modality("audio"), config)
    student, teacher = model.student, model.teacher
    assert teacher.distance(student) == 0
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(1.25)
    assert teacher.distance(student) == pytest.approx(0.2, rel=1e-5)
    model.update_teacher(0.75)  # the copied part catches up and no longer counts
    assert teacher.distance(student) == pytest.approx(0.15, rel=1e-5)
