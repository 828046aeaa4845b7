"""Faults of the machine, of the user and of the data during a run, and what becomes of the run."""

import io
import json
import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from launching import Ended, Running, checkpoint, rows, weights
from modality_cases import MODALITIES, Sample
from modality_cases.audio import RATE
from PIL import Image
from tiny import STEPS, samples, write_shard

from selfdistill.data.shards import ShardSet
from selfdistill.engine import checkpoint as checkpoint_module
from selfdistill.engine.trainer import Trainer
from selfdistill.objective.data2vec import Data2Vec

Config = Callable[..., str]
Pretrain = Callable[..., Ended]
Start = Callable[..., Running]
Reference = Callable[[str], Path]
HOUR = 3600.0


@pytest.mark.parametrize("modality", MODALITIES)
def test_the_clock_goes_back_an_hour(
    modality: str,
    config: Config,
    here: Pretrain,
    reference: Reference,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Weights, schedules and checkpoints are those of a run whose clock was right."""
    wall, step, save = time.time, Trainer.step, Trainer.save
    back = [0.0]

    def jumping(self: Trainer, *parts: Any) -> None:
        if self.step_count == 20:
            back[0] = HOUR
        step(self, *parts)

    def saved(self: Trainer) -> None:
        save(self)
        self.saver.finish()
        assert self.saver.last is not None
        for path in self.saver.last.rglob("*"):
            os.utime(path, (time.time(), time.time()))

    monkeypatch.setattr(time, "time", lambda: wall() - back[0])
    monkeypatch.setattr(Trainer, "step", jumping)
    monkeypatch.setattr(Trainer, "save", saved)
    ended = here(config(modality), "log.tensorboard=true")
    assert ended.code == 0, ended.stderr
    run = tmp_path / "run"
    assert weights(run, STEPS) == weights(reference(modality), STEPS)
    of_time = ("samples_per_second", "train_seconds", "data_wait")
    for row, wanted in zip(rows(run), rows(reference(modality)), strict=True):
        assert all(row[key] >= 0 for key in of_time)
        assert row["lr"] == wanted["lr"]
        assert row["ema_decay"] == wanted["ema_decay"]
    seconds = [row["train_seconds"] for row in rows(run)]
    assert seconds == sorted(seconds)
    # written after the jump, and so older by its files' times
    shutil.rmtree(checkpoint(run, STEPS))
    os.utime(checkpoint(run, 49), (wall() + HOUR, wall() + HOUR))
    again = here(config(modality))
    assert f"resumed from {checkpoint(run, 56)}" in again.stderr
    assert weights(run, STEPS) == weights(reference(modality), STEPS)


@pytest.mark.parametrize("modality", MODALITIES)
def test_deterministic_runs_are_equal(
    modality: str, config: Config, pretrain: Pretrain, tmp_path: Path
) -> None:
    words = ["train.deterministic=true", "train.steps=12", "data.workers=1"]
    for run in ("one", "two"):
        ended = pretrain(config(modality, run), *words)
        assert ended.code == 0, ended.stderr
    assert weights(tmp_path / "one", 12) == weights(tmp_path / "two", 12)


def test_shards_that_come_and_go(config: Config, here: Pretrain, tmp_path: Path) -> None:
    """Other data are refused, whether they are more or fewer; nothing that is there is touched. The
    same may lie elsewhere."""
    data = tmp_path / "data"
    paths = [write_shard(data / f"{n}.tar", samples("image", 16, n)) for n in range(3)]
    named = f"data.train={json.dumps([str(path) for path in paths[:2]])}"
    whole = f"data.train={json.dumps([str(path) for path in paths])}"
    words = [config(), "checkpoint.every=3"]
    assert here(*words, named, "train.steps=6", "optim.warmup_steps=2").code == 0
    kept = sorted((tmp_path / "run" / "checkpoints").rglob("*"))
    before = weights(tmp_path / "run", 6), rows(tmp_path / "run")

    grown = here(*words, whole, "train.steps=9")
    assert grown.code == 2
    assert "data.train: holds 48 samples in 3 shards, but 32 in 2 when the" in grown.stderr
    assert "start on the new data in another run_dir with init_from" in grown.stderr

    turned = f"data.train={json.dumps([str(path) for path in reversed(paths[:2])])}"
    other_order = here(*words, turned, "train.steps=9")
    assert other_order.code == 2
    assert "but 32 in 2 when the checkpoint was made, in another order, or" in other_order.stderr

    paths[1].rename(tmp_path / "away.tar")
    missing = here(*words, named, "train.steps=9")
    assert missing.code == 2
    assert f"data.train: no file matches '{paths[1]}'; check the path" in missing.stderr

    assert (weights(tmp_path / "run", 6), rows(tmp_path / "run")) == before
    assert sorted((tmp_path / "run" / "checkpoints").rglob("*")) == kept
    (tmp_path / "away.tar").replace(paths[1])
    again = here(*words, named, "train.steps=9", "optim.warmup_steps=2")
    assert again.code == 0, again.stderr
    assert [row["step"] for row in rows(tmp_path / "run")] == [*range(1, 10)]

    data.rename(tmp_path / "moved")
    named = named.replace(str(data), str(tmp_path / "moved"))
    moved = here(*words, named, "train.steps=12", "optim.warmup_steps=2")
    assert moved.code == 0, moved.stderr
    assert [row["step"] for row in rows(tmp_path / "run")] == [*range(1, 13)]


def waiting_for_data() -> None:
    read, count = ShardSet.read, [0]

    def slow(self: ShardSet, i: int) -> Any:
        count[0] += 1
        if count[0] == 30:  # in the fourth step of eight samples
            print("waiting", flush=True)
            for _ in range(6000):  # one long sleep misses a signal right before it begins
                time.sleep(0.1)
        return read(self, i)

    ShardSet.read = slow  # type: ignore[method-assign]


def saving() -> None:
    write = checkpoint_module.write_checkpoint

    def slow(folder: Path, content: Any) -> None:
        if content.step == 7:
            print("waiting", flush=True)
            time.sleep(1)
        write(folder, content)

    checkpoint_module.write_checkpoint = slow


@pytest.mark.parametrize("when", [waiting_for_data, saving])
def test_asked_to_stop_while_waiting(
    when: Callable[[], None],
    config: Config,
    start: Start,
    pretrain: Pretrain,
    reference: Reference,
    tmp_path: Path,
) -> None:
    """For data, which may never come, or while a checkpoint is being written: no step is lost."""
    running = start(config("image"), setup=when)
    while "waiting" not in running.printed("stdout"):
        assert running.process.is_alive(), running.printed("stderr")
        time.sleep(0.01)
    running.send(signal.SIGTERM)
    ended = running.wait()
    assert ended.code == 75, ended.stderr
    run = tmp_path / "run"
    step = rows(run)[-1]["step"]
    assert sorted(path.name for path in (run / "checkpoints").iterdir())[-1] == f"step-{step:08d}"
    assert step == (3 if when is waiting_for_data else max(step, 7))
    assert "unfinished" not in ended.stderr
    again = pretrain(config("image"), "--resume")
    assert f"resumed from {checkpoint(run, step)}" in again.stderr
    assert weights(run, STEPS) == weights(reference("image"), STEPS)
    assert [row["step"] for row in rows(run)] == [*range(1, STEPS + 1)]


def broken_while_saving() -> None:
    write, forward = checkpoint_module.write_checkpoint, Data2Vec.forward
    begun = threading.Event()

    def slow(folder: Path, content: Any) -> None:
        begun.set()
        time.sleep(1)
        write(folder, content)

    def broken(self: Data2Vec, batches: Any) -> Any:
        if begun.is_set():
            print("broken", flush=True)
            raise ValueError("the model broke")
        return forward(self, batches)

    checkpoint_module.write_checkpoint = slow
    Data2Vec.forward = broken  # type: ignore[method-assign]


def test_a_checkpoint_is_written_to_the_end_whatever_goes_wrong(
    config: Config, start: Start, tmp_path: Path
) -> None:
    """Also when a launcher then ends the process, as it does when another one failed."""
    running = start(config("image"), setup=broken_while_saving)
    while "broken" not in running.printed("stdout"):
        assert running.process.is_alive(), running.printed("stderr")
        time.sleep(0.01)
    time.sleep(0.2)
    running.send(signal.SIGTERM)
    assert running.wait().code == 1
    assert (checkpoint(tmp_path / "run", 7) / "manifest.json").exists()


def silence(_: int) -> Sample:
    out = io.BytesIO()
    soundfile.write(out, np.zeros(800, np.float32), RATE, format="WAV")
    return {"wav": out.getvalue()}


def test_silence_is_flagged(config: Config, here: Pretrain, tmp_path: Path) -> None:
    """Nothing to learn, all samples are one: a collapse by name, not a loss of nearly nothing."""
    shard = write_shard(tmp_path / "silence.tar", map(silence, range(48)))
    words = ["guard.after_steps=20", "log.every=5", "train.steps=200", "guard.patience=2"]
    ended = here(config("audio"), f"data.train=[{shard}]", *words)
    assert ended.code == 3
    last = ended.stderr.splitlines()[-1]
    assert "collapsed at step" in last
    assert "the deviation between samples fell to" in last
    found = rows(tmp_path / "run")
    assert 20 < found[-1]["step"] < 200
    assert all(row["loss"] is not None and math.isfinite(row["loss"]) for row in found)


def grey() -> Sample:
    out = io.BytesIO()
    Image.new("RGB", (18, 18), (90, 90, 90)).save(out, "PNG")
    return {"png": out.getvalue()}


@pytest.mark.parametrize("modality", ["image", "text"])
def test_samples_that_are_all_the_same_are_flagged(
    modality: str, config: Config, here: Pretrain, tmp_path: Path
) -> None:
    """Their places still differ, so that neither deviation nor rank say so."""
    same = {"image": grey(), "text": {"txt": b"bala " * 3}}[modality]
    shard = write_shard(tmp_path / "same.tar", [same] * 48)
    words = ["guard.after_steps=20", "log.every=5", "train.steps=200", "guard.patience=2"]
    words += {"image": ["input.color_jitter=0"], "text": ["encoder.vocab_size=20"]}[modality]
    ended = here(config(modality), f"data.train=[{shard}]", *words)
    assert ended.code == 3, ended.stderr
    assert "the deviation between samples fell to" in ended.stderr.splitlines()[-1]


@pytest.mark.parametrize("modality", ["audio", "text"])
def test_nothing_under_the_mask(
    modality: str, config: Config, here: Pretrain, tmp_path: Path
) -> None:
    """Nearly every input is too short for a span: those steps are defined, and never NaN."""
    words = ["mask.mask_prob=0.0001", "train.steps=12", "optim.warmup_steps=2", "log.every=1"]
    ended = here(config(modality), *words)
    assert ended.code == 0, ended.stderr
    found = rows(tmp_path / "run")
    assert [row["step"] for row in found] == [*range(1, 13)]
    assert all(row["loss"] is not None and row["loss"] >= 0 for row in found)
    assert all(row["grad_norm"] is not None for row in found)


@pytest.mark.parametrize(
    ("modality", "word"),
    [
        ("audio", "mask.mask_prob=0"),
        ("audio", "mask.mask_prob=1"),
        ("text", "mask.mask_prob=0"),
        ("text", "mask.mask_prob=1"),
        ("image", "mask.num_patches=0"),
        ("image", "mask.num_patches=16"),
    ],
)
def test_masks_of_nothing_and_of_everything_are_refused(
    modality: str, word: str, config: Config, here: Pretrain, tmp_path: Path
) -> None:
    ended = here(config(modality), word)
    assert ended.code == 2
    assert f"selfdistill: {word.split('=')[0]}: " in ended.stderr
    assert not (tmp_path / "run").exists()
