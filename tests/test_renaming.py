"""The tables of the originals' names: every parameter of ours once, and back again."""

from collections.abc import Callable

import pytest
import torch

from selfdistill.config import RunConfig
from selfdistill.errors import UserError
from selfdistill.modalities.base import OriginalFormat, load_modality
from selfdistill.objective.data2vec import Data2Vec
from selfdistill.originals import load_original, recognise
from selfdistill.renaming import to_ours, to_theirs

Make = Callable[..., RunConfig]


def build(config: RunConfig, seed: int = 0) -> Data2Vec:
    torch.manual_seed(seed)
    return Data2Vec(load_modality(config.modality), config)


def trained(model: Data2Vec) -> dict[str, torch.Tensor]:
    return {n: p.detach() for n, p in model.named_parameters() if not n.startswith("teacher.")}


@pytest.fixture(params=["audio", "image", "text"])
def config(request: pytest.FixtureRequest, tiny_config: Make) -> RunConfig:
    changes = {"model": {"depth": 11}}
    if request.param == "audio":
        changes["encoder"] = {"conv_bias": True}
    return tiny_config(request.param, **changes)


def format_of(config: RunConfig) -> OriginalFormat:
    original = load_modality(config.modality).original
    assert original is not None
    return original


def test_the_table_is_a_bijection(config: RunConfig) -> None:
    names, ours = format_of(config).names, trained(build(config))
    theirs = to_theirs(ours, names)
    assert sum(t.numel() for t in theirs.values()) == sum(t.numel() for t in ours.values())
    back, unknown = to_ours(theirs, names)
    assert unknown == []
    assert set(back) == set(ours)
    assert all(torch.equal(back[name], value) for name, value in ours.items())


def test_no_row_of_the_table_is_idle_or_double(config: RunConfig) -> None:
    names, ours = format_of(config).names, trained(build(config))
    for table in (names[:i] + names[i + 1 :] for i in range(len(names))):
        with pytest.raises(KeyError):
            to_theirs(ours, table)


def test_it_is_recognised_and_loaded(config: RunConfig) -> None:
    source, target = build(config, seed=1), build(config, seed=2)
    state = to_theirs(trained(source), format_of(config).names)
    modality, _ = recognise(state)
    assert modality.name == config.modality
    load_original(target, state)
    assert all(torch.equal(value, trained(target)[n]) for n, value in trained(source).items())
    student = dict(target.student.named_parameters())
    for name, parameter in target.teacher.backbone.named_parameters():
        assert torch.equal(parameter, student[name])


def test_the_teacher_s_own_weights_are_loaded(config: RunConfig) -> None:
    source, target, original = build(config, 1), build(config, 2), format_of(config)
    whole = to_theirs(trained(build(config, 3)), original.names)
    prefix = original.teacher_prefix
    teacher = {n.removeprefix(prefix): t for n, t in whole.items() if n.startswith(prefix)}
    load_original(target, to_theirs(trained(source), original.names), teacher)
    mine = {
        n.replace("teacher.backbone.", "student."): p
        for n, p in target.named_parameters()
        if n.startswith("teacher.")
    }
    # what the original's teacher lacks follows the student
    theirs = to_theirs(mine, original.names)
    found = {name: tensor for name, tensor in theirs.items() if name.startswith(prefix)}
    assert found
    assert all(torch.equal(tensor, whole[name]) for name, tensor in found.items())
    assert all(torch.equal(value, trained(target)[n]) for n, value in trained(source).items())


def test_what_does_not_fit_is_named(config: RunConfig) -> None:
    model, names = build(config), format_of(config).names
    state = to_theirs(trained(model), names)
    block = next(name for name in state if "fc1.weight" in name)
    for changed, words in (
        ({n: t for n, t in state.items() if n != block}, r"missing \['student\.trunk\.blocks"),
        (state | {"surprise": state[block]}, r"unknown \['surprise'\]"),
        (
            state | {block: state[block][1:]},
            r"mlp\.fc1\.weight has the shape \(31, 16\).*\(32, 16\)",
        ),
    ):
        with pytest.raises(UserError, match=words):
            load_original(model, changed)


def test_a_part_of_a_joined_tensor_that_is_absent_is_missed() -> None:
    names = [("a.{}", ("q.{}", "k.{}"))]
    tensors = {"q.0": torch.ones(1, 2), "k.0": torch.zeros(1, 2), "q.1": torch.ones(1, 2)}
    found, unknown = to_ours(tensors, names)
    assert unknown == []
    assert list(found) == ["a.0"]
    assert found["a.0"].tolist() == [[1, 1], [0, 0]]


def test_nobody_s_checkpoint_is_refused() -> None:
    with pytest.raises(UserError, match="the first is 'mine'"):
        recognise({"mine": torch.zeros(1)})
    with pytest.raises(UserError, match="the first is 'missing'"):
        recognise({})
