"""Runs whose steps hold a length of audio."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from launching import Ended, checkpoint, rows, weights
from tiny import samples, write_shard
from worlds import Job, train

Config = Callable[..., str]
Pretrain = Callable[..., Ended]
WORDS = ["train.steps=9", "checkpoint.every=3", "checkpoint.keep=9", "optim.warmup_steps=0"]


@pytest.fixture
def words(config: Config) -> list[str]:
    return [config("audio"), *WORDS, "data.batch_length=0.5"]


def test_it_goes_on_after_any_step(words: list[str], here: Pretrain, tmp_path: Path) -> None:
    begun = here(*words)
    assert begun.code == 0, begun.stderr
    assert "9 steps of 0.5 seconds" in begun.stderr
    run = tmp_path / "run"
    whole, lines = weights(run, 9), rows(run)
    assert len({row["masked_share"] for row in lines}) > 5
    for step in (9, 6):
        shutil.rmtree(checkpoint(run, step))
    again = here(*words, "data.workers=2")
    assert again.code == 0, again.stderr
    assert weights(run, 9) == whole


def test_two_processes_have_the_same_steps(
    words: list[str], config: Config, here: Pretrain, tmp_path: Path
) -> None:
    chances = ("dropout", "attention_dropout", "activation_dropout", "drop_path")
    words += [f"model.{name}=0" for name in chances]
    words += ["encoder.input_dropout=0", "mask.equal_counts=false", "train.steps=3"]
    assert here(*words).code == 0
    train(2, [Job([config("audio", "two"), *words[1:]])], tmp_path / "output")
    for row, wanted in zip(rows(tmp_path / "two"), rows(tmp_path / "run"), strict=True):
        assert row["masked_share"] == pytest.approx(wanted["masked_share"], rel=1e-6)
        assert row["loss"] == pytest.approx(wanted["loss"], rel=1e-4)


def test_mistakes(words: list[str], config: Config, here: Pretrain) -> None:
    short = here(*words, "data.batch_length=0.01")
    assert short.code == 2
    assert "data.batch_length: 0.01 does not hold one of the longest samples" in short.stderr
    image = here(config("image"), *WORDS, "data.batch_length=3")
    assert image.code == 2
    assert "data.batch_length: 3.0, but samples of image have no length" in image.stderr


def test_other_data_are_refused(config: Config, here: Pretrain, tmp_path: Path) -> None:
    """Even if the config names the same folder."""
    data = tmp_path / "data"
    data.mkdir()
    write_shard(data / "0.tar", samples("image", 16, 1))
    words = [config("image"), *WORDS, f"data.train={json.dumps([str(data)])}"]
    assert here(*words, "train.steps=3").code == 0
    write_shard(data / "1.tar", samples("image", 5, 2))
    grown = here(*words)
    assert grown.code == 2
    assert "holds 21 samples in 2 shards, but 16 in 1 when the checkpoint was made" in grown.stderr
    assert "init_from" in grown.stderr
    (data / "1.tar").unlink()
    assert here(*words).code == 0
