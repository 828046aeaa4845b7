"""However many processes there are, and however the model lies on them, a run is the same."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from launching import rows
from small_runs import saved
from tiny import JOINT
from worlds import Job, train

pytestmark = pytest.mark.slow
STEPS = 10
CLOCKS = {"data_wait", "samples_per_second", "train_seconds"}
NOT_COMPARED = ("sample_std", "prediction_rank", "target_slope")
"""The first is measured within each micro-batch; the others read the smallest singular values."""
Words = Callable[..., list[str]]


@dataclass(frozen=True)
class Run:
    """A run over all modalities, or over one, and whether its model is in shards."""

    modality: str
    strategy: str
    processes: int = 1
    sharded: bool = False
    accumulate: int = 1

    @property
    def name(self) -> str:
        shards = " sharded" if self.sharded else ""
        words = f"{self.modality} {self.strategy} on {self.processes}{shards}"
        return words if self.accumulate == 1 else f"{words} in {self.accumulate}"

    @property
    def reference(self) -> "Run":
        return Run(self.modality, self.strategy)

    def job(self, folder: Path, words: Words) -> Job:
        settings = [f"strategy={self.strategy}", f"train.accumulate={self.accumulate}"]
        settings += [f"train.steps={STEPS}", f"checkpoint.every={STEPS}"]
        return Job(words(self.modality, folder / self.name, *settings), self.sharded)


RUNS = [
    Run(JOINT, "dense", processes=2),
    Run(JOINT, "visible", processes=4),
    Run(JOINT, "visible", processes=2, sharded=True),
    Run(JOINT, "dense", processes=4, sharded=True),
    # clips of all lengths, one in each micro-batch
    Run("audio", "dense", processes=2, accumulate=4),
    Run("audio", "visible", processes=2, sharded=True, accumulate=4),
]


@pytest.fixture(scope="module")
def runs(words: Words, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all runs, by name."""
    folder = tmp_path_factory.mktemp("same")
    every = [*RUNS, *dict.fromkeys(run.reference for run in RUNS)]
    for processes in sorted({run.processes for run in every}):
        jobs = [run.job(folder, words) for run in every if run.processes == processes]
        train(processes, jobs, folder / f"output of {processes}")
    return folder


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_losses_and_weights(run: Run, runs: Path) -> None:
    found, wanted = rows(runs / run.name), rows(runs / run.reference.name)
    assert [row["step"] for row in found] == [*range(1, STEPS + 1)]
    losses = [key for key in wanted[0] if key.rpartition("/")[2] == "loss"]
    assert len(losses) == (4 if run.modality == JOINT else 1)
    for row, expected in zip(found, wanted, strict=True):
        for key in losses:
            assert row[key] == pytest.approx(expected[key], abs=1e-5), row["step"]
        compared = (key for key in expected.keys() - CLOCKS if not key.endswith(NOT_COMPARED))
        for key in compared:
            assert row[key] == pytest.approx(expected[key], rel=1e-3, abs=1e-5), key
    ours = saved(runs / run.name, STEPS)
    theirs = saved(runs / run.reference.name, STEPS)
    assert ours.keys() == theirs.keys()
    assert any(name.startswith("teacher.") for name in ours)
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=1e-4, msg=name)
