"""The tables of the originals' names: every parameter of ours once, and back again."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from selfdistill.config import RunConfig
from selfdistill.errors import UserError
from selfdistill.modalities.base import OriginalFormat, load_modality
from selfdistill.objective.data2vec import Data2Vec
from selfdistill.objective.state import of_teacher
from selfdistill.originals import load_original, recognise, trained_part
from selfdistill.renaming import to_ours, to_theirs

Make = Callable[..., RunConfig]


def build(config: RunConfig, seed: int = 0) -> Data2Vec:
    torch.manual_seed(seed)
    return Data2Vec(config)


def trained(model: Data2Vec) -> dict[str, torch.Tensor]:
    (name,) = model.parts
    return trained_part(dict(model.state_dict()), name)


SECOND: dict[str, dict[str, Any]] = {
    "audio": {"prenet_depth": 2, "alibi": True},
    "image": {
        "prenet_depth": 2,
        "positions": "sincos",
        "context_norm": True,
    },
    "text": {"prenet_depth": 2, "context_norm": True},
}
"""What data2vec 2.0's encoders have beyond 1.0's."""


@pytest.fixture(params=[f"{name} {n}" for name in ("audio", "image", "text") for n in (1, 2)])
def config(request: pytest.FixtureRequest, tiny_config: Make) -> RunConfig:
    modality, number = request.param.split()
    changes: dict[str, Any] = {"model": {"depth": 11}, "encoder": {}}
    if modality == "audio":
        changes["encoder"] = {"conv_bias": True}
    if number == "2":
        changes["encoder"] = SECOND[modality]
        changes["model"] |= {"norm_order": "post", "key_bias": True, "layer_scale": 0.0}
        changes["decoder"] = {"width": 8, "groups": 4, "layers": 11}
        changes["strategy"] = "visible"
        if modality == "image":
            changes["input"] = {"size": [32, 32]}
    return tiny_config(modality, **changes)


def format_of(config: RunConfig) -> OriginalFormat:
    return load_modality(config.modality).originals[config.strategy == "visible"]


def test_the_table_is_a_bijection(config: RunConfig) -> None:
    names, ours = format_of(config).names, trained(build(config))
    theirs = to_theirs(ours, names)
    assert sum(t.numel() for t in theirs.values()) == sum(t.numel() for t in ours.values())
    back, unknown = to_ours(theirs, names)
    assert unknown == []
    assert set(back) == set(ours)
    assert all(torch.equal(back[name], value) for name, value in ours.items())


def test_no_row_of_the_table_is_idle_or_double(config: RunConfig) -> None:
    names, ours = list(format_of(config).names), trained(build(config))
    # what only other settings have is named, too
    if config.strategy == "visible":
        config = replace(config, decoder=replace(config.decoder, projection_layers=2))
    elif config.modality == "image":
        config = replace(config, encoder=replace(config.encoder, positions="block_relative"))
    elif config.modality == "text":
        config = replace(config, model=replace(config.model, norm_order="pre"))
    ours |= trained(build(config))
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
    for name, parameter in target.teacher.named_parameters():
        assert torch.equal(parameter, student[name])


def test_the_teacher_s_own_weights_are_loaded(config: RunConfig) -> None:
    source, target, original = build(config, 1), build(config, 2), format_of(config)
    whole = to_theirs(trained(build(config, 3)), original.names)
    prefix, (name,) = original.teacher_prefixes[0], target.parts
    has = to_theirs(of_teacher(dict(target.state_dict()), name), original.names)
    teacher = {n.removeprefix(prefix): whole[n] for n in has if n.startswith(prefix)}
    load_original(target, to_theirs(trained(source), original.names), teacher)
    # what the original's teacher lacks follows the student
    theirs = to_theirs(of_teacher(dict(target.state_dict()), name), original.names)
    found = {name: tensor for name, tensor in theirs.items() if name.startswith(prefix)}
    assert found
    assert all(torch.equal(tensor, whole[name]) for name, tensor in found.items())
    assert all(torch.equal(value, trained(target)[n]) for n, value in trained(source).items())


def test_a_teacher_of_blocks_only(tiny_config: Make) -> None:
    """Its names begin at the block's number."""
    config = tiny_config("audio", strategy="visible", decoder={"width": 8, "groups": 4})
    names = format_of(config).names
    state = to_theirs(trained(build(config, 1)), names)
    blocks = {n.removeprefix("blocks."): t + 1 for n, t in state.items() if n.startswith("blocks.")}
    model = build(config, 2)
    load_original(model, state, blocks)
    ours = of_teacher(dict(model.state_dict()), "audio")
    for name, tensor in to_theirs(ours, names).items():
        assert torch.equal(tensor, state[name] + name.startswith("blocks.")), name


def test_what_does_not_fit_is_named(config: RunConfig) -> None:
    model, names = build(config), format_of(config).names
    state = to_theirs(trained(model), names)
    block = [name for name in state if "fc1.weight" in name][-1]
    for changed, words in (
        ({n: t for n, t in state.items() if n != block}, r"missing \['trunk\.blocks"),
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


def test_several_of_ours_in_one_of_theirs() -> None:
    names = [(("q.{}", "k.{}"), "both.{+1}")]
    theirs = {"both.1": torch.tensor([1.0, 2.0])}
    ours, unknown = to_ours(theirs, names)
    assert unknown == []
    assert {name: tensor.tolist() for name, tensor in ours.items()} == {"q.0": [1.0], "k.0": [2.0]}
    assert to_theirs(ours, names)["both.1"].tolist() == [1.0, 2.0]


def test_nobody_s_checkpoint_is_refused() -> None:
    with pytest.raises(UserError, match="the first is 'mine'"):
        recognise({"mine": torch.zeros(1)})
    with pytest.raises(UserError, match="the first is 'missing'"):
        recognise({})
