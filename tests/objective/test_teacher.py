"""The teacher: a moving average with storage, precision and mode of its own."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from selfdistill.config import RunConfig
from selfdistill.errors import UserError
from selfdistill.modalities.base import FeatureEncoder
from selfdistill.objective.data2vec import Data2Vec
from selfdistill.types import Batch, Masks, Tokens

Make = Callable[..., RunConfig]


def build(config: RunConfig) -> Data2Vec:
    torch.manual_seed(0)
    return Data2Vec(config)


def only(model: Data2Vec) -> str:
    """The one modality of a run."""
    (name,) = model.parts
    return name


def encoder_of(model: Data2Vec) -> FeatureEncoder:
    return model.student[only(model)].encoder


def targets_of(model: Data2Vec, batch: Batch, local: Tokens) -> torch.Tensor:
    return model.teacher(only(model), batch, local, model.student)


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
    return {n: p.detach().clone() for n, p in model.teacher.named_parameters()}


def shake_student(model: Data2Vec) -> None:
    with torch.no_grad():
        for parameter in model.student.parameters():
            parameter.add_(torch.randn_like(parameter))


@pytest.fixture(params=["audio", "image", "text"])
def model(request: pytest.FixtureRequest, tiny_config: Make) -> Data2Vec:
    return build(tiny_config(request.param))


def test_it_starts_equal_in_storage_of_its_own(model: Data2Vec) -> None:
    student = dict(model.student.named_parameters())
    for name, parameter in model.teacher.named_parameters():
        assert torch.equal(parameter, student[name])
        assert parameter.data_ptr() != student[name].data_ptr()
        assert not parameter.requires_grad
    before = teacher_state(model)
    shake_student(model)
    assert all(torch.equal(value, before[name]) for name, value in teacher_state(model).items())


def test_it_is_in_eval_mode_from_the_start(model: Data2Vec) -> None:
    """Nobody calls ``train`` on a new model."""
    assert model.student.training
    assert not any(module.training for module in model.teacher.modules())


def test_it_stays_in_eval_mode(model: Data2Vec) -> None:
    model.train()
    assert model.student.training
    assert not any(module.training for module in model.teacher.modules())
    batch = batch_of(only(model))
    model({only(model): batch})
    assert all(module.training for module in model.student.modules())


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


def test_it_stays_where_it_is_if_the_student_did_not_move(tiny_config: Make) -> None:
    model = build(tiny_config("image"))
    shake_student(model)
    before = teacher_state(model)
    model.update_teacher(0.5, torch.tensor(False))
    assert all(torch.equal(value, before[name]) for name, value in teacher_state(model).items())


def test_copied_parts_follow_whatever_the_decay(tiny_config: Make) -> None:
    model = build(tiny_config("audio", teacher={"copied": ["encoder.positions"]}))
    shake_student(model)
    before, student = teacher_state(model), dict(model.student.named_parameters())
    model.update_teacher(1.0)
    after = teacher_state(model)
    copied = {name for name in after if name.startswith("encoders.audio.positions.")}
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
    for name, part in (("student", model.student), ("teacher", model.teacher)):
        encoder = part.encoders[only(model)]
        embed = encoder.embed

        def counted(*args: Any, name: str = name, embed: Any = embed) -> Any:
            calls.append(name)
            return embed(*args)

        encoder.embed = counted  # type: ignore[method-assign]
    return calls


def test_a_shared_feature_encoder_runs_once_per_step(tiny_config: Make) -> None:
    model = build(tiny_config("audio"))
    calls = count_calls(model)
    model({"audio": batch_of("audio")})
    assert calls == ["student"]
    assert not list(model.teacher.encoders["audio"].local.parameters())


def test_an_own_feature_encoder_is_used(tiny_config: Make) -> None:
    model = build(tiny_config("audio", teacher={"scope": "all"}))
    calls = count_calls(model)
    model({"audio": batch_of("audio")})
    assert calls == ["student", "teacher"]


@pytest.mark.parametrize("modality", ["audio", "image", "text"])
def test_it_multiplies_in_half_under_autocast_but_averages_in_float32(
    modality: str, tiny_config: Make
) -> None:
    config = tiny_config(modality, teacher={"scope": "all"})
    model, batch = build(config), batch_of(modality)
    local = encoder_of(model).embed(batch.inputs, None)
    expected = targets_of(model, batch, local)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = targets_of(model, batch, local)
    assert found.dtype == torch.float32
    assert 1e-4 < (found - expected).norm() / expected.norm() < 0.02
    assert not torch.equal(found, found.bfloat16().float())


def test_it_gives_targets_for_every_token_without_gradient(model: Data2Vec) -> None:
    batch = batch_of(only(model))
    local = encoder_of(model).embed(batch.inputs, None)
    targets = targets_of(model, batch, local)
    assert targets.shape == local.x.shape
    assert not targets.requires_grad


@pytest.mark.parametrize("scope", ["all", "all_but_local", "blocks"])
def test_no_scope_lets_a_gradient_into_the_student(scope: str, tiny_config: Make) -> None:
    """With scope=blocks the student's encoder has made what the teacher reads."""
    model, batch = build(tiny_config("text", teacher={"scope": scope})), batch_of("text")
    local = encoder_of(model).embed(batch.inputs, None)
    assert not targets_of(model, batch, local).requires_grad


def test_it_does_not_see_the_mask(tiny_config: Make) -> None:
    model, batch = build(tiny_config("text")), batch_of("text")
    local = encoder_of(model).embed(batch.inputs, None)
    other = Masks.from_bool(torch.arange(9).expand(2, 9) > 3)
    expected = targets_of(model, batch, local)
    assert torch.equal(targets_of(model, Batch(batch.inputs, masks=other), local), expected)


def test_another_input_of_the_teacher_reaches_only_it(tiny_config: Make) -> None:
    model, batch = build(tiny_config("text")), batch_of("text")
    other = copy.copy(batch.inputs).flip(1)
    local = encoder_of(model).embed(batch.inputs, None)
    found = targets_of(model, Batch(batch.inputs, teacher_inputs=other), local)
    expected = targets_of(model, Batch(other), local)
    assert torch.equal(found, expected)
    assert not torch.allclose(found, targets_of(model, batch, local))


@pytest.mark.parametrize("averaged", [True, False])
def test_integer_buffers_move_only_as_a_replay_asks(averaged: bool, tiny_config: Make) -> None:
    model = build(tiny_config("image", compat={"averaged_index_buffers": averaged}))
    index = model.teacher.encoders["image"].relative_bias.relative_position_index
    before = index.clone()
    model.update_teacher(0.96)  # which rounds below some of the integers
    assert torch.equal(index, before) != averaged


def test_distance_is_that_of_the_averaged_weights(tiny_config: Callable[..., RunConfig]) -> None:
    config = tiny_config("audio", teacher={"copied": ["encoder.positions"]})
    model = Data2Vec(config)
    student, teacher = model.student, model.teacher
    assert teacher.distance(student) == 0
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(1.25)
    assert teacher.distance(student) == pytest.approx(0.2, rel=1e-5)
    model.update_teacher(0.75)  # the copied part catches up and no longer counts
    assert teacher.distance(student) == pytest.approx(0.15, rel=1e-5)


def test_a_teacher_that_is_a_copy_has_no_distance(tiny_config: Callable[..., RunConfig]) -> None:
    model = Data2Vec(tiny_config("audio", teacher={"copied": ["encoder", "trunk"]}))
    with torch.no_grad():
        next(model.student.parameters()).add_(1)
    assert model.teacher.distance(model.student) == 0


PRENET = {"prenet_depth": 1}


def parts_of(names: list[str]) -> set[str]:
    """Of parameters, without the numbers of layers and what comes behind."""
    return {".".join(name.split(".")[:3]).split(".0")[0] for name in names}


@pytest.mark.parametrize(
    ("scope", "lacks"),
    [
        ("all", set()),
        ("all_but_local", {"encoders.audio.local"}),
        (
            "blocks",
            {
                "encoders.audio.local",
                "encoders.audio.mask_token",
                "encoders.audio.positions",
                "encoders.audio.norm",
                "encoders.audio.prenet",
                "encoders.audio.alibi",
            },
        ),
    ],
)
def test_the_scope_says_what_it_has_and_moves(
    scope: str, lacks: set[str], tiny_config: Make
) -> None:
    encoder = {**PRENET, "alibi": True}
    model = build(tiny_config("audio", teacher={"scope": scope}, encoder=encoder))
    student = dict(model.student.named_parameters())
    before = teacher_state(model)
    assert parts_of([name for name in student if name not in before]) == lacks
    assert before.keys() <= student.keys()
    shake_student(model)
    model.update_teacher(0.5)
    after = teacher_state(model)
    assert all(not torch.equal(after[name], before[name]) for name in after)
    assert not any(p.requires_grad for p in model.teacher.parameters())


DROPPING = {
    "audio": {"encoder": {**PRENET, "input_dropout": 0.5}, "model": {"dropout": 0.5}},
    "image": {"encoder": PRENET, "model": {"dropout": 0.5, "drop_path": 0.5}},
    "text": {"encoder": PRENET, "model": {"dropout": 0.5}},
}


@pytest.mark.parametrize("scope", ["all", "all_but_local", "blocks"])
@pytest.mark.parametrize("modality", DROPPING)
def test_no_scope_lets_the_student_s_dropout_in(
    modality: str, scope: str, tiny_config: Make
) -> None:
    config = tiny_config(modality, teacher={"scope": scope}, **DROPPING[modality])
    model, batch = build(config).train(), batch_of(modality)
    shake_student(model)
    local = encoder_of(model).embed(batch.inputs, None)
    found = [targets_of(model, batch, local) for _ in range(2)]
    assert torch.equal(*found)
    assert encoder_of(model).training
    model.eval()
    assert torch.equal(targets_of(model, batch, local), found[0])


@pytest.mark.parametrize("modality", DROPPING)
def test_whose_encoder_the_blocks_read(modality: str, tiny_config: Make) -> None:
    """With scope=blocks the student's as it is now; the blocks are the teacher's own."""
    batch, targets = batch_of(modality), {}
    for scope in ("all", "blocks"):
        model = build(tiny_config(modality, teacher={"scope": scope}, encoder=PRENET))
        for part in ("encoders", "trunk"):
            local = encoder_of(model).embed(batch.inputs, None)
            before = targets_of(model, batch, local)
            with torch.no_grad():
                for parameter in model.student.get_submodule(part).parameters():
                    parameter.add_(0.2 * torch.randn_like(parameter))
            local = encoder_of(model).embed(batch.inputs, None)
            targets[scope, part] = not torch.equal(targets_of(model, batch, local), before)
    assert targets == {
        ("all", "encoders"): False,
        ("all", "trunk"): False,
        ("blocks", "encoders"): True,
        ("blocks", "trunk"): False,
    }


def test_with_blocks_only_there_are_no_parts_of_the_encoder_to_copy(tiny_config: Make) -> None:
    config = tiny_config("text", teacher={"scope": "blocks", "copied": ["encoder.norm"]})
    with pytest.raises(UserError, match=r"teacher\.copied.*'encoder\.norm'"):
        build(config)
