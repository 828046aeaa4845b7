"""The guards: what each limit stops, after how long, and with which words."""

import json
import math
from pathlib import Path

import pytest

from selfdistill.config import GuardConfig
from selfdistill.config_files.load import load_config
from selfdistill.engine.guard import CollapseGuard
from selfdistill.errors import HealthError
from selfdistill.modalities.base import load_modality

HEALTHY = {
    "target_std": 0.8,
    "prediction_std": 0.5,
    "sample_std": 0.6,
    "target_rank": 40.0,
    "teacher_distance": 0.01,
}
CONFIG = GuardConfig(
    after_steps=100,
    min_target_std=0.1,
    min_prediction_std=0.01,
    min_relative_std=0.3,
    min_relative_rank=0.5,
    min_predicted_share=0.2,
    patience=2,
)


def guard() -> CollapseGuard:
    found = CollapseGuard(CONFIG)
    found.check(50, HEALTHY)
    return found


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"target_std": 0.09, "prediction_std": 0.05}, "min_target_std"),
        ({"target_std": 0.2, "prediction_std": 0.1}, "min_relative_std 0.3 of the untrained"),
        ({"prediction_std": 0.009}, "min_prediction_std"),
        ({"sample_std": 0.009}, "deviation between samples fell to 0.009, below 0.01"),
        ({"prediction_std": 0.15}, "min_predicted_share 0.2 of the targets' 0.800"),
        ({"target_rank": 19.0}, "effective rank of the targets fell to 19, below 20"),
        ({"teacher_distance": 0.0}, "the teacher is a copy of the student"),
    ],
)
def test_each_limit_stops_the_run(change: dict[str, float], words: str) -> None:
    watching = guard()
    watching.check(150, HEALTHY | change)
    with pytest.raises(HealthError, match=words) as caught:
        watching.check(200, HEALTHY | change)
    assert "collapsed at step 200" in str(caught.value)
    assert "teacher.ema_decay" in str(caught.value)


def test_what_is_within_its_band_never_stops() -> None:
    watching = guard()
    band = {
        "target_std": 0.25,
        "prediction_std": 0.06,
        "sample_std": 0.02,
        "target_rank": 21.0,
        "teacher_distance": 1e-4,
    }
    for step in range(150, 1000, 50):
        watching.check(step, band)


def test_patience_starts_again_after_a_good_interval() -> None:
    watching, bad = guard(), HEALTHY | {"target_rank": 1.0}
    for step in range(150, 1000, 100):
        watching.check(step, bad)
        watching.check(step + 50, HEALTHY)


def test_nothing_is_judged_before_after_steps() -> None:
    watching = guard()
    for step in range(60, 101, 10):
        watching.check(step, dict.fromkeys(HEALTHY, 0.0))


def test_an_interval_without_a_finished_step_is_no_alarm() -> None:
    watching = CollapseGuard(CONFIG)
    nothing = dict.fromkeys(HEALTHY, math.nan)
    watching.check(150, nothing)
    assert not watching.reference
    watching.check(200, HEALTHY)
    for step in range(250, 500, 50):
        watching.check(step, nothing)


def test_reference_and_alarms_survive_a_resume() -> None:
    before, bad = guard(), HEALTHY | {"target_rank": 1.0}
    before.check(150, bad)
    after = CollapseGuard(CONFIG)
    after.load_state(before.state())
    with pytest.raises(HealthError, match=r"untrained teacher's 40\.0"):
        after.check(200, bad)


def test_an_encoder_worse_than_untrained_stops_the_run() -> None:
    watching = guard()
    watching.check_accuracy(200, {"trained": 0.46, "untrained": 0.5}, margin=0.05)
    watching.check_accuracy(90, {"trained": 0.1, "untrained": 0.5}, margin=0.05)
    with pytest.raises(HealthError, match=r"0\.440 from the trained encoder and 0\.500 from"):
        watching.check_accuracy(200, {"trained": 0.44, "untrained": 0.5}, margin=0.05)


ROOT = Path(__file__).parents[2]
# what runs of configs/*/sample.yaml logged, on a CPU with one thread, every 100 steps
TRAJECTORIES = json.loads((Path(__file__).parent / "trajectories.json").read_text())


def watch(name: str, rows: list[list[float]]) -> None:
    """Watch a run as its config says, without looking at the teacher's distance."""
    path = ROOT / "configs" / name.split(",")[0] / "sample.yaml"
    watching = CollapseGuard(load_config(path, [], load_modality).guard)
    for row in rows:
        values = dict(zip(TRAJECTORIES["columns"], row, strict=True))
        watching.check(
            int(values.pop("step")), values | {"sample_std": 1.0, "teacher_distance": 1.0}
        )


@pytest.mark.parametrize("name", TRAJECTORIES["healthy"])
def test_healthy_runs_are_let_be(name: str) -> None:
    rows = TRAJECTORIES["healthy"][name]
    assert rows[-1][0] == 4000
    watch(name, rows)


@pytest.mark.parametrize("name", TRAJECTORIES["broken"])
def test_a_teacher_that_copies_the_student_is_seen_without_its_distance(name: str) -> None:
    with pytest.raises(HealthError, match=r"collapsed at step (9|1[0-5])00: .* fell to"):
        watch(name, TRAJECTORIES["broken"][name])
