"""All processes go on from the same checkpoint, or none does."""

import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import rows, weights
from worlds import Job, train

from selfdistill import resume
from selfdistill.engine.checkpoint_files import complete_checkpoints, newest_checkpoint
from selfdistill.engine.trainer import Trainer
from selfdistill.objective.data2vec import Data2Vec

Words = Callable[..., list[str]]
GOOD = "back/checkpoints/step-00000002"
"""A good step stands behind it."""


def _others_find_an_older_state() -> None:
    """As where a run is still being ended, or a server of files tells an old story."""

    def oldest(folder: Path) -> Path | None:
        found = complete_checkpoints(folder)
        return found[0] if found else None

    resume.newest_checkpoint = newest_checkpoint if os.environ["RANK"] == "0" else oldest


def _each_in_a_folder_of_its_own(folder: Path) -> None:
    resume.newest_checkpoint = newest_checkpoint
    own = folder / os.environ["RANK"]
    own.mkdir(exist_ok=True)
    os.chdir(own)


def _goes_wrong(folder: Path) -> None:
    """From the fifth step on no loss is a number."""
    _each_in_a_folder_of_its_own(folder)
    step, forward, wrong = Trainer.step, Data2Vec.forward, [False]

    def noted(self: Trainer, *parts: Any) -> None:
        wrong[0] = self.step_count > 3
        step(self, *parts)

    def spoilt(self: Data2Vec, batches: Any) -> Any:
        factor = torch.nan if wrong[0] else 1.0
        return {n: o._replace(loss=o.loss * factor) for n, o in forward(self, batches).items()}

    Trainer.step, Data2Vec.forward = noted, spoilt  # type: ignore[method-assign]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("resuming")


@pytest.fixture(scope="module")
def said(words: Words, folder: Path) -> list[str]:
    """What each process said."""

    def job(
        run: Path, steps: int, setup: Callable[[], None] | None, code: int = 0, *more: str
    ) -> Job:
        given = ["optim.schedule=constant", "checkpoint.every=2", f"train.steps={steps}"]
        return Job(words("image", run, *given, *more), setup=setup, code=code)

    apart = partial(_each_in_a_folder_of_its_own, folder)
    jobs = [
        job(folder / "whole", 8, None),
        job(folder / "older", 6, None),
        job(folder / "older", 8, _others_find_an_older_state),
        job(Path("run"), 6, apart),
        job(Path("run"), 8, apart, code=2),
        job(Path("back"), 8, partial(_goes_wrong, folder), 2, "train.max_left_out=2"),
    ]
    train(2, jobs, folder / "output")
    return [(folder / "output" / str(rank)).read_text() for rank in (0, 1)]


@pytest.mark.usefixtures("said")
def test_the_main_one_chooses(folder: Path) -> None:
    assert weights(folder / "older", 8) == weights(folder / "whole", 8)
    assert [row["step"] for row in rows(folder / "older")] == [*range(1, 9)]


def test_a_folder_that_only_the_main_one_has(said: list[str], folder: Path) -> None:
    """The other one would begin afresh, or not go back, and what they learn would be mixed."""
    for text in said:
        lines = [line for line in text.splitlines() if line.startswith("selfdistill:")]
        for line, checkpoint in zip(lines, ("run/checkpoints/step-00000006", GOOD), strict=True):
            assert re.search(
                rf"run_dir: the main process goes on from {checkpoint}, which process 1 does not "
                "find; give all nodes the same folder",
                line,
            )
    assert [row["step"] for row in rows(folder / "0" / "run")] == [*range(1, 7)]
