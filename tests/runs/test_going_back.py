"""Runs that go back to a checkpoint when step after step fails."""

import json
import shutil
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import Ended, checkpoint, rows
from small_runs import saved
from tiny import JOINT

from selfdistill.data.steps import data_step
from selfdistill.engine.step_guard import StepGuard
from selfdistill.engine.trainer import Trainer
from selfdistill.objective.data2vec import Data2Vec

Config = Callable[..., str]
Pretrain = Callable[..., Ended]
Spoil = Callable[[Collection[int]], None]
WORDS = ["train.steps=12", "checkpoint.every=3", "checkpoint.keep=9", "train.max_left_out=3"]
NAN = float("nan")


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Spoil:
    """Make the loss of these steps of the data NaN."""

    def patch(steps: Collection[int]) -> None:
        forward, step = Data2Vec.forward, Trainer.step
        now = [0]

        def noting(self: Trainer, *parts: Any) -> None:
            now[0] = data_step(self.step_count, self.recovery.guard.passed_over)
            step(self, *parts)

        def spoilt(self: Data2Vec, batches: Any) -> Any:
            found = forward(self, batches)
            if now[0] not in steps:
                return found
            return {n: o._replace(loss=o.loss * NAN) for n, o in found.items()}

        monkeypatch.setattr(Trainer, "step", noting)
        monkeypatch.setattr(Data2Vec, "forward", spoilt)

    return patch


def assert_equal(run: Path, other: Path) -> None:
    ours, theirs = saved(run, 12), saved(other, 12)
    assert ours.keys() == theirs.keys()
    assert not [name for name, value in theirs.items() if not torch.equal(ours[name], value)]


@pytest.mark.parametrize(("modality", "workers"), [("audio", 0), ("image", 2), (JOINT, 0)])
def test_it_ends_as_if_the_batches_had_never_been_there(
    modality: str,
    workers: int,
    config: Config,
    here: Pretrain,
    spoil: Spoil,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    words = [*WORDS, f"data.workers={workers}", "log.every=1"]
    with monkeypatch.context() as patch:
        init = StepGuard.__init__

        def without(self: StepGuard, *parts: Any) -> None:
            init(self, *parts)
            self.passed_over = [6, 7, 8]

        patch.setattr(StepGuard, "__init__", without)
        assert here(config(modality, "other"), *words).code == 0
    spoil({6, 7, 8})
    ended = here(config(modality), *words)
    assert ended.code == 0, ended.stderr
    run = tmp_path / "run"
    # that of step 6 was not known to be good, as no step after it was
    assert f"going back to {checkpoint(run, 3)}" in ended.stderr
    assert_equal(run, tmp_path / "other")
    logged = rows(run)
    assert [row["step"] for row in logged if "lr" in row] == list(range(1, 13))
    assert (logged[-1]["left_out_steps"], logged[-1]["rollbacks"]) == (3, 1)


def test_killed_after_it_went_back(
    config: Config, here: Pretrain, spoil: Spoil, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spoil({4, 5, 6})
    assert here(config("text", "other"), *WORDS).code == 0
    with monkeypatch.context() as patch:
        step = Trainer.step

        def killed(self: Trainer, *parts: Any) -> None:
            if self.recovery.guard.rollbacks and self.step_count == 4:
                raise KeyboardInterrupt
            step(self, *parts)

        patch.setattr(Trainer, "step", killed)
        with pytest.raises(KeyboardInterrupt):
            here(config("text"), *WORDS)
    # the checkpoint is older than the knowledge of what failed
    assert here(config("text"), *WORDS).code == 0
    assert_equal(tmp_path / "run", tmp_path / "other")


def test_left_out_steps_are_named(
    config: Config, here: Pretrain, spoil: Spoil, tmp_path: Path
) -> None:
    spoil({2})
    ended = here(config("text"), "train.steps=4", "optim.warmup_steps=1", "checkpoint.every=2")
    assert ended.code == 0
    (row,) = map(json.loads, (tmp_path / "run" / "left_out.jsonl").read_text().splitlines())
    assert (row["step"], row["data_step"], row["fault"]) == (3, 2, "the loss is nan")
    assert len(row["samples"]["text"]) == 8
    assert all(key.startswith("s0") for key in row["samples"]["text"])
    first = ", ".join(row["samples"]["text"][:5])
    line = f"step 3 is left out: the loss is nan (samples {first} and 3 more)"
    assert line in ended.stderr.splitlines()
    # killed before it was kept, and done once more
    shutil.rmtree(checkpoint(tmp_path / "run", 4))
    path = tmp_path / "run" / "left_out.jsonl"
    path.write_text(path.read_text() + '{"step": 4, "data')
    words = [config("text"), "train.steps=4", "optim.warmup_steps=1", "checkpoint.every=2"]
    assert here(*words).code == 0
    assert [json.loads(line) for line in path.read_text().splitlines()] == [row]


def test_only_the_micro_batch_at_fault_is_named(
    config: Config, here: Pretrain, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    forward, calls = Data2Vec.forward, [0]

    def spoilt(self: Data2Vec, batches: Any) -> Any:
        calls[0] += 1
        found = forward(self, batches)
        factor = NAN if calls[0] == 3 else 1.0
        return {n: o._replace(loss=o.loss * factor) for n, o in found.items()}

    monkeypatch.setattr(Data2Vec, "forward", spoilt)
    words = ["train.steps=4", "optim.warmup_steps=1", "train.accumulate=2"]
    assert here(config("text"), *words).code == 0
    (row,) = map(json.loads, (tmp_path / "run" / "left_out.jsonl").read_text().splitlines())
    assert row["step"] == 2
    assert len(row["samples"]["text"]) == 4


def test_going_back_in_vain(config: Config, here: Pretrain, spoil: Spoil, tmp_path: Path) -> None:
    spoil(range(6, 100))
    ended = here(config("audio"), *WORDS, "train.max_rollbacks=2")
    assert ended.code == 3
    last = ended.stderr.splitlines()[-1]
    good = checkpoint(tmp_path / "run", 3)
    assert "3 steps in a row were left out (train.max_left_out)" in last
    assert f"the run went back to {good} 2 times before (train.max_rollbacks)" in last
    assert "the loss is nan (samples s00" in last
    assert "left_out.jsonl" in last
    lines = (tmp_path / "run" / "left_out.jsonl").read_text().splitlines()
    # each attempt takes other batches
    assert [json.loads(line)["data_step"] for line in lines] == list(range(6, 15))
    # nothing behind the last good one is left to be taken for what comes next
    again = here(config("audio"), *WORDS, "train.max_rollbacks=0")
    assert again.code == 3
    assert "step 9: 3 steps in a row" in again.stderr.splitlines()[-1]


def test_what_it_may_go_back_to_is_not_pushed_out(
    config: Config, here: Pretrain, spoil: Spoil, tmp_path: Path
) -> None:
    spoil({6, 7, 8})
    ended = here(config("text"), *WORDS, "checkpoint.keep=1")
    assert ended.code == 0, ended.stderr
    assert f"going back to {checkpoint(tmp_path / 'run', 3)}" in ended.stderr
    kept = (tmp_path / "run" / "checkpoints").glob("step-*")
    assert list(kept) == [checkpoint(tmp_path / "run", 12)]


def test_without_a_good_checkpoint(config: Config, here: Pretrain, spoil: Spoil) -> None:
    spoil(range(1, 100))
    ended = here(config("image"), *WORDS, "checkpoint.every=1")
    assert ended.code == 3
    assert "and there is no good checkpoint to go back to" in ended.stderr.splitlines()[-1]


def test_spoilt_weights_are_made_good(
    config: Config, here: Pretrain, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A number in the weights is lost, with which no batch would do any more."""
    step, done = Trainer.step, []

    def lost(self: Trainer, *parts: Any) -> None:
        if self.step_count == 7 and not done:
            done.append(self.step_count)
            parameter = next(self.plain_model.student.parameters())
            parameter.data.view(-1)[0] = NAN
        step(self, *parts)

    monkeypatch.setattr(Trainer, "step", lost)
    ended = here(config("text"), *WORDS)
    assert ended.code == 0, ended.stderr
    assert f"going back to {checkpoint(tmp_path / 'run', 6)}" in ended.stderr
    assert all(torch.isfinite(value).all() for value in saved(tmp_path / "run", 12).values())


def test_a_jump_of_the_loss_is_left_out(
    config: Config, here: Pretrain, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    forward, calls = Data2Vec.forward, [0]

    def jumping(self: Data2Vec, batches: Any) -> Any:
        calls[0] += 1
        factor = 20.0 if calls[0] == 25 else 1.0
        found = forward(self, batches)
        return {n: o._replace(loss=o.loss * factor) for n, o in found.items()}

    monkeypatch.setattr(Data2Vec, "forward", jumping)
    words = ["train.steps=30", "checkpoint.every=10", "log.every=1"]
    ended = here(config("text"), *words)
    assert ended.code == 0, ended.stderr
    assert "step 25 is left out: the loss is" in ended.stderr
    assert [row["left_out_steps"] for row in rows(tmp_path / "run")][23:26] == [0, 1, 1]


def test_a_checkpoint_of_another_version(
    config: Config, here: Pretrain, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert here(config("text"), "train.steps=3", "optim.warmup_steps=1").code == 0
    load = Trainer.restore

    def older(self: Trainer, checkpoint: Any, path: Path) -> None:
        state = {key: value for key, value in checkpoint.state.items() if key != "recovery"}
        load(self, replace(checkpoint, state=state), path)

    monkeypatch.setattr(Trainer, "restore", older)
    ended = here(config("text"), "train.steps=4", "optim.warmup_steps=1")
    assert ended.code == 2
    assert "lacks 'recovery' and was written by another version" in ended.stderr
    assert "Traceback" not in ended.stderr
