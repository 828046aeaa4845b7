"""A model over several modalities is as many models that share their blocks."""

from typing import Any

import pytest
import torch
from encoder_cases import batch_of, randomised
from modality_cases.image import SQUARE

from selfdistill.config import RunConfig
from selfdistill.config_files.load import build_config
from selfdistill.errors import UserError
from selfdistill.modalities.base import load_modality
from selfdistill.objective.data2vec import Data2Vec

OWN: dict[str, dict[str, Any]] = {
    "audio": {
        "encoder": {
            "conv_layers": [[8, 10, 5], [8, 3, 2], [8, 2, 2]],
            "position_width": 10,
            "position_depth": 2,
            "position_groups": 4,
            "alibi": True,
        },
        "objective": {"layer_norms": ["instance"]},
        "teacher": {"scope": "all_but_local", "copied": ["encoder.positions"]},
        "decoder": {"width": 8, "kernel": 3},
    },
    "image": {
        "encoder": {"patch_size": 8, "positions": "sincos", "prenet_depth": 1},
        "mask": {"num_patches": 4, "min_block": 1},
        "input": SQUARE,
        "objective": {"layer_norms": ["layer"], "cls_loss": 0.5},
        "teacher": {"scope": "all"},
        "decoder": {"width": 12, "kernel": 3},
    },
    "text": {
        "encoder": {"vocab_size": 64},
        "input": {"max_tokens": 24},
        "objective": {"layer_norms": ["layer"], "loss_beta": 4.0, "head_layers": 2},
        "teacher": {"scope": "blocks"},
        "decoder": {"width": 16, "kernel": 5},
    },
}
SHARED = {
    "run_dir": "unused",
    "model": {"width": 16, "depth": 3, "heads": 4, "mlp_ratio": 2.0},
    "objective": {"average_top_k_layers": 2},
    "decoder": {"groups": 4, "layers": 2, "mask_noise_std": 0.0},
}
strategies = pytest.mark.parametrize("strategy", ["dense", "visible", "text dense, else visible"])


def config_of_all(strategy: str, own: dict[str, Any] = OWN) -> RunConfig:
    if strategy == "text dense, else visible":
        own = {**own, "text": {**own["text"], "strategy": "dense"}}
        strategy = "visible"
    return build_config({**SHARED, "strategy": strategy, "modalities": own}, load_modality)


def build(config: RunConfig) -> Data2Vec:
    torch.manual_seed(0)
    return randomised(Data2Vec(config))


def alone(whole: Data2Vec, name: str) -> Data2Vec:
    """A run over one modality with the same weights."""
    model = Data2Vec(whole.parts[name])
    state = whole.state_dict()
    model.load_state_dict({key: state[key] for key in model.state_dict()})
    return model


@strategies
def test_each_modality_is_computed_as_if_alone(strategy: str) -> None:
    """And the shared blocks learn from the sum."""
    model = build(config_of_all(strategy))
    batches = {name: batch_of(name, num_masks=2) for name in OWN}
    steps = model(batches)
    assert list(steps) == list(OWN)
    sum(step.loss for step in steps.values()).backward()
    wanted: dict[str, torch.Tensor] = {}
    for name, batch in batches.items():
        single = alone(model, name)
        step = single({name: batch})[name]
        torch.testing.assert_close(step.loss, steps[name].loss)
        assert step.tokens == steps[name].tokens
        step.loss.backward()
        for key, parameter in single.named_parameters():
            if parameter.grad is not None:
                wanted[key] = wanted.get(key, 0) + parameter.grad
    found = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == wanted.keys()
    for key, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[key], rtol=1e-4, atol=1e-5)


@strategies
def test_no_parameter_is_anyone_else_s(strategy: str) -> None:
    model = build(config_of_all(strategy))
    singles = [alone(model, name).state_dict().keys() for name in OWN]
    assert set().union(*singles) == model.state_dict().keys()
    shared = set(singles[0]).intersection(*singles[1:])
    assert shared == {key for key in model.state_dict() if ".trunk." in key}
    assert not any("trunk" in key for key in model.state_dict() if key not in shared)


def test_a_step_of_one_modality_leaves_the_others_alone() -> None:
    model = build(config_of_all("visible"))
    assert list(model({"text": batch_of("text")})) == ["text"]
    model({"text": batch_of("text")})["text"].loss.backward()
    reached = {key.split(".")[2] for key, p in model.named_parameters() if p.grad is not None}
    assert not reached & {"audio", "image"}


def test_the_teacher_has_of_each_what_its_scope_says() -> None:
    model = build(config_of_all("dense"))
    assert list(model.teacher.encoders) == ["audio", "image"]
    assert not list(model.teacher.encoders["audio"].local.parameters())
    assert list(model.teacher.encoders["image"].local.parameters())
    before = {key: p.clone() for key, p in model.teacher.named_parameters()}
    student = dict(model.student.named_parameters())
    model.update_teacher(1.0)
    for key, parameter in model.teacher.named_parameters():
        copied = key.startswith("encoders.audio.positions.")
        assert torch.equal(parameter, student[key] if copied else before[key])
    assert any(key.startswith("encoders.audio.positions.") for key in before)
    model.update_teacher(0.5)
    for key, parameter in model.teacher.named_parameters():
        assert not torch.equal(parameter, before[key]), key


def test_a_part_to_copy_is_looked_for_in_its_own_encoder() -> None:
    own = {**OWN, "image": {**OWN["image"], "teacher": {"copied": ["encoder.alibi"]}}}
    with pytest.raises(UserError, match=r"teacher\.copied: no part .* 'encoder\.alibi'"):
        build(config_of_all("dense", own))
