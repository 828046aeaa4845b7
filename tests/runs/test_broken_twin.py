"""A run whose teacher is a copy of the student is stopped; its healthy twin is not."""

from pathlib import Path

import pytest

from selfdistill.config_files.load import load_config
from selfdistill.engine.run_dir import RunDir
from selfdistill.errors import HealthError
from selfdistill.modalities.base import load_modality
from selfdistill.pretrain import pretrain

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
QUICK = ["train.steps=400", "optim.warmup_steps=200", "eval.tasks={}", "eval.pictures=false"]
QUICK += ["guard.after_steps=250", "guard.min_predicted_share=0.25", "log.every=50"]
"""Half the recipe's steps and half its limit, which the healthy one is above by then."""
BROKEN = ["teacher.ema_decay=0", "teacher.ema_end_decay=0"]
BROKEN += ["guard.after_steps=20", "log.every=10"]
"""A copy can be told at once."""


def run(folder: Path, *overrides: str) -> None:
    sample = ROOT / "configs" / "image" / "sample.yaml"
    given = [f"run_dir={folder}", "log.tensorboard=false", *QUICK, *overrides]
    pretrain(load_config(sample, given, load_modality))


def test_the_broken_twin_is_stopped(tmp_path: Path) -> None:
    with pytest.raises(HealthError, match=r"collapsed at step \d+: .*the teacher is a copy"):
        run(tmp_path, *BROKEN)
    with RunDir(tmp_path) as kept:
        assert list(kept.checkpoints.glob("step-*/manifest.json")), "the state was not saved"


def test_the_healthy_twin_is_not(tmp_path: Path) -> None:
    run(tmp_path)
