"""Runs that go wrong are known early, and those that do not are let be."""

import json
from pathlib import Path
from typing import Any

import pytest

from selfdistill.config import GuardConfig
from selfdistill.config_files.load import load_config
from selfdistill.engine.guard import CollapseGuard
from selfdistill.health.bands import bands
from selfdistill.health.verdict import early_signs, judge
from selfdistill.modalities.base import load_modality

ROOT = Path(__file__).parents[2]
# what the first 200 steps of configs/*/sample.yaml logged, every 20, on a CPU with one thread: ten
# seeds of each; the teacher without a memory (teacher.ema_decay and ema_end_decay 0); no
# normalisation of layers and targets; ten times the learning rate; of configs/*/sample_visible.yaml
# four seeds and ten times the rate
RECORDED: dict[str, dict[str, list[list[float]]]] = json.loads(
    (Path(__file__).parent / "first_steps.json").read_text()
)
COLUMNS = ("step", "target_std", "teacher_distance")
BROKEN = {"no memory": "a copy of the student", "no norms": "deviate by", "rate": "runs away"}
GUARD = GuardConfig(after_steps=400, max_teacher_distance=0.2)
USUAL = {"target_std": 0.6, "teacher_distance": 0.1}


def signs_of(recorded: str, lines: list[list[float]]) -> list[str]:
    """What the trainer says of the first 200 steps."""
    modality, *visible = recorded.split()
    name = "_".join(["sample", *visible])
    config = load_config(ROOT / "configs" / modality / f"{name}.yaml", [], load_modality)
    guard = CollapseGuard(config.guard)
    found = []
    for line in lines:
        values = dict(zip(COLUMNS, line, strict=True))
        found += guard.signs(int(values["step"]), values)
    return found


@pytest.mark.parametrize("recorded", RECORDED)
def test_healthy_runs_have_none(recorded: str) -> None:
    seeds = [lines for name, lines in RECORDED[recorded].items() if name not in BROKEN]
    assert len(seeds) == (4 if "visible" in recorded else 10)
    assert not any(signs_of(recorded, lines) for lines in seeds)


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("modality", ["audio", "image", "text"])
def test_broken_ones_do_within_200_steps(modality: str, kind: str) -> None:
    lines = RECORDED[modality][kind]
    assert max(line[0] for line in lines) <= 200
    assert BROKEN[kind] in signs_of(modality, lines)[0]


@pytest.mark.parametrize("recorded", ["image visible", "text visible"])
def test_so_does_too_high_a_rate_of_the_other_strategy(recorded: str) -> None:
    lines = RECORDED[recorded]["rate"]
    assert max(line[0] for line in lines) <= 200
    assert BROKEN["rate"] in signs_of(recorded, lines)[0]


@pytest.mark.parametrize(
    ("step", "change", "words"),
    [
        (49, {"target_std": 0.0, "teacher_distance": 0.0}, []),
        (50, {"target_std": 0.19}, ["the targets deviate by 0.19 only"]),
        (400, {"target_std": 0.19}, ["the targets deviate by 0.19 only"]),
        (401, {"target_std": 0.19}, []),  # from here on the guard has limits of its own
        (50, {"teacher_distance": 9e-7}, ["the teacher is a copy of the student"]),
        (900, {"teacher_distance": 0.21}, ["the student runs away from its teacher"]),
        (900, {"teacher_distance": 0.2}, []),
        (50, {"target_std": float("nan"), "teacher_distance": float("nan")}, []),
    ],
)
def test_each_sign(step: int, change: dict[str, float], words: list[str]) -> None:
    found = early_signs(step, USUAL | change, GUARD)
    assert len(found) == len(words)
    for finding, word in zip(found, words, strict=True):
        assert finding.text.startswith(word)
        assert finding.advice
        assert finding.status == "look"
    assert not early_signs(step, {}, GUARD)


def test_no_limit_of_the_distance() -> None:
    assert not early_signs(900, USUAL | {"teacher_distance": 5.0}, GuardConfig())


def test_each_is_told_once_for_as_long_as_it_lasts() -> None:
    guard = CollapseGuard(GUARD)
    told: list[Any] = [
        bool(guard.signs(step, USUAL | {"teacher_distance": distance}))
        for step, distance in enumerate([0.1, 0.3, 0.3, 0.1, 0.3], start=100)
    ]
    assert told == [False, True, False, False, True]


def test_a_verdict_has_them_too() -> None:
    steps = [100, 200]
    values = {"target_std": [0.1, 0.1], "teacher_distance": [0.1, 0.3]}
    found = judge(steps, values, bands(steps, values, GUARD), GUARD)
    assert [finding.key for finding in found] == ["target_std", "teacher_distance"]
