"""Whether the config of a checkpoint lets a run go on with another one."""

from types import SimpleNamespace
from typing import Any

import pytest

from selfdistill.errors import UserError
from selfdistill.resume import check_data, compare_configs


def nested(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


@pytest.mark.parametrize(
    ("key", "old", "new"),
    [
        ("modality", "audio", "text"),
        ("encoder.patch_size", 16, 14),
        ("encoder.conv.width", 512, 256),
        ("model.width", 768, 1024),
        ("model.depth", 12, 24),
        ("model.heads", 12, 16),
        ("model.mlp_ratio", 4.0, 3.0),
        ("model.norm_order", "post", "pre"),
        ("model.key_bias", True, False),
        ("model.layer_scale", 0.0, 1e-4),
        ("model.layer_scale", 1e-4, 0),
        ("objective.head_layers", 1, 2),
        ("teacher.scope", "all", "blocks"),
        ("strategy", "dense", "visible"),
        ("decoder.layers", 4, 5),
        ("seed", 0, 1),
        ("train.batch_size", 256, 128),
        ("data.sampling_weight", 1.0, 2.0),
    ],
)
def test_changes_that_a_resumed_run_cannot_take(key: str, old: Any, new: Any) -> None:
    """Whether it is over one modality or over several."""
    line = f"{key}: {old} -> {new}"
    assert compare_configs(nested(key, old), nested(key, new)) == ([line], [])
    if key != "modality":
        key = f"modalities.my.own.{key}"
        before, after = (several(nested(key, value)) for value in (old, new))
        assert compare_configs(before, after) == ([f"{key}: {old} -> {new}"], [])


def several(config: dict[str, Any]) -> dict[str, Any]:
    """The dots of one modality's name are no levels."""
    return {"modalities": {"my.own": config["modalities"]["my"]["own"], "text": {"x": 1}}}


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        (
            {"modalities": {"audio": {"encoder": {"a": 1}}, "text": {}}},
            {"modalities": {"text": {}, "image": {"mask": {"a": 1}}, "audio": {}}},
            "modalities: audio, text -> text, image, audio",
        ),
        (
            {"modality": "audio", "encoder": {"a": 1}, "modalities": {}},
            {"modalities": {"audio": {}, "text": {}}},
            "modalities: audio -> audio, text",
        ),
    ],
)
def test_other_modalities_are_all_that_is_said(
    old: dict[str, Any], new: dict[str, Any], line: str
) -> None:
    assert compare_configs(old, new) == ([line], [])


def test_the_order_of_the_modalities_is_no_change() -> None:
    old = {"modalities": {"audio": {"mask": {"a": 1}}, "text": {"mask": {"a": 2}}}}
    new = {"modalities": dict(reversed(old["modalities"].items()))}
    assert compare_configs(old, new) == ([], [])


@pytest.mark.parametrize(
    ("key", "old", "new"),
    [
        ("optim.lr", 5e-4, 1e-4),
        ("mask.mask_prob", 0.65, 0.5),
        ("model.layer_scale", 1e-4, 1e-5),
        ("model.dropout", 0.0, 0.1),
        ("train.accumulate", 1, 2),
        ("train.steps", 100, 200),
        ("decoder.input_dropout", 0.0, 0.1),
        ("decoder.mask_noise_std", 0.01, 0.02),
        ("modalities.audio.objective.loss_weight", 1.0, 0.5),
        ("data.workers", 2, 0),
        ("data.train", ["here/a.tar"], ["there/a.tar"]),
        ("optim.betas", [0.9, 0.98], [0.9, 0.999]),
    ],
)
def test_changes_that_it_can(key: str, old: Any, new: Any) -> None:
    assert compare_configs(nested(key, old), nested(key, new)) == ([], [f"{key}: {old} -> {new}"])


def test_what_is_no_change() -> None:
    old = {"run_dir": "a", "resume": "auto", "optim": {"betas": [0.9, 0.98], "lr": 1}}
    new = {"run_dir": "b", "resume": "never", "optim": {"betas": [0.9, 0.98], "lr": 1.0}}
    assert compare_configs(old, new) == ([], [])


def test_keys_that_come_and_go() -> None:
    refused, changed = compare_configs(
        {"encoder": {"old": 1}, "eval": {"tasks": {}}}, {"eval": {"tasks": {"x": {"train": ["t"]}}}}
    )
    assert refused == ["encoder.old: 1 -> unset"]
    assert changed == ["eval.tasks.x.train: unset -> ['t']"]


@pytest.mark.parametrize("lacks", ["", "keys"])
def test_samples_that_have_changed_places(lacks: str) -> None:
    """They are told by their keys, which checkpoints of earlier versions do not have."""
    before = {"shards": 1, "samples": 8, "sha256": "a", "keys": "k"}
    before.pop(lacks, None)
    now = {"shards": 1, "samples": 8, "sha256": "a", "keys": "other"}
    source: Any = SimpleNamespace(fingerprint=lambda: now)
    if lacks:
        return check_data({"image": before}, {"image": source})
    with pytest.raises(UserError, match="8 in 1 when the checkpoint was made, in another order"):
        check_data({"image": before}, {"image": source})
