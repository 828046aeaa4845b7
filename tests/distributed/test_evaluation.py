"""An evaluation is shared by all processes: one result, and one end."""

import json
import os
import re
import shutil
import signal
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from launching import rows, weights
from tiny import JOINT, samples, write_shard
from worlds import Job, train

from selfdistill.errors import HealthError
from selfdistill.probes import evaluate
from selfdistill.probes.panel import Panel

pytestmark = pytest.mark.slow
Words = Callable[..., list[str]]
STEPS = ["train.batch_size=18", "train.steps=4", "optim.warmup_steps=1", "checkpoint.every=2"]
MODALITIES = ("audio", "text")


class Event:
    """What comes over which process in the next job, and when; the patches are made once."""

    where, ranks, come = "", "", True

    @classmethod
    def is_now(cls, where: str) -> bool:
        """Once in a job."""
        if cls.come or cls.where != where or os.environ["RANK"] not in cls.ranks:
            return False
        cls.come = True
        return True


def _comes(where: str, ranks: str) -> None:
    if not Event.where:
        _patch()
    Event.where, Event.ranks, Event.come = where, ranks, False
    print(f"\n{where} on {ranks}", flush=True)


def _patch() -> None:
    features, probe = evaluate.encoder_features, Panel.__call__

    def computed(*given: Any) -> Any:
        found = features(*given)
        if Event.is_now("features"):
            signal.raise_signal(signal.SIGTERM)
        if Event.is_now("error"):
            raise HealthError("the features are not finite")
        return found

    def probed(*given: Any) -> Any:
        if Event.is_now("probes"):
            signal.raise_signal(signal.SIGUSR1)
        return probe(*given)

    evaluate.encoder_features, Panel.__call__ = computed, probed  # type: ignore[method-assign]


# one process gets a signal while it computes, or all do; the main one while it probes; one fails
EVENTS: Mapping[str, tuple[Callable[[], None], int]] = {
    "other": (partial(_comes, "features", "1"), 75),
    "all": (partial(_comes, "features", "01"), 75),
    "main": (partial(_comes, "probes", "0"), 75),
    "error": (partial(_comes, "error", "1"), 3),
}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Of the runs over one modality and over all: sets of a few batches and of less than one,
    which have samples that cannot be used, the first batch among them."""
    folder = tmp_path_factory.mktemp("tasks")
    words = []
    for modality in MODALITIES:
        found = {}
        # labels that nothing tells: accuracies are those of these very features
        for split, count in (("train", 34), ("test", 23)):
            made = samples(modality, 2 * count, count)[::2]
            made = [sample | {"cls": b"%d" % (i % 2)} for i, sample in enumerate(made)]
            for number in (0, 1, 2, 3, 17):
                made.insert(number, {next(iter(made[0])): b"\xff\xfe", "cls": b"0"})
            found[split] = [str(write_shard(folder / modality / f"{split}.tar", made))]
        both = {"b": found}
        if modality == "text":
            few = write_shard(folder / modality / "few.tar", made[4:7])
            both["a"] = found | {"test": [str(few)]}
        words.append(f"modalities.{modality}.eval.tasks={json.dumps(both)}")
    return [*words, "eval.batch_size=4"]


@pytest.fixture(scope="module")
def runs(words: Words, tasks: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluation")

    def job(name: str, *more: str, **named: Any) -> Job:
        return Job(words(JOINT, folder / name, *STEPS, *more), **named)

    train(1, [job("before")], folder / "output before")
    for name in ("1", "2", "3", "2 sharded"):
        shutil.copytree(folder / "before", folder / name)
    train(1, [job("1", *tasks)], folder / "output of 1")
    jobs = [job("2", *tasks), job("2 sharded", *tasks, sharded=True)]
    jobs += [job("evaluated", *tasks, "eval.every=1"), job("not evaluated")]
    train(2, jobs, folder / "output of 2")
    train(3, [job("3", *tasks)], folder / "output of 3")
    jobs = [job(name, *tasks, setup=setup, code=code) for name, (setup, code) in EVENTS.items()]
    jobs += [job(name, *tasks, setup=partial(_comes, "nothing", "")) for name in EVENTS]
    train(2, jobs, folder / "output of events")
    return folder


def result(run: Path) -> Any:
    return json.loads((run / "eval.json").read_text())


@pytest.mark.parametrize("name", ["2", "3", "2 sharded"])
def test_the_result_is_that_of_one_process(name: str, runs: Path) -> None:
    expected = result(runs / "1")
    assert list(expected) == list(MODALITIES)
    for modality, found in expected.items():
        assert (found["step"], list(found["tasks"])) == (4, ["b", "a"][: 1 + (modality == "text")])
        sizes = found["tasks"]["b"]
        assert (sizes["train_samples"], sizes["test_samples"]) == (34, 23)
        assert None not in found["linear"].values()
    assert result(runs / name) == expected


def test_training_does_not_notice(runs: Path) -> None:
    for step in (2, 4):
        assert weights(runs / "evaluated", step) == weights(runs / "not evaluated", step)
    evaluated = [row["step"] for row in rows(runs / "evaluated") if "text/eval/b/knn" in row]
    assert evaluated == [1, 2, 3, 4]


@pytest.mark.parametrize("name", ["other", "all", "main"])
def test_a_signal_ends_it_on_all_and_it_is_made_up_for(name: str, runs: Path) -> None:
    """The exit codes were those expected, or there would be no runs."""
    (said,) = re.findall(
        rf"{EVENTS[name][0].args[0]} on {EVENTS[name][0].args[1]}\n(.*?)(?:\n\w+ on|\Z)",
        (runs / "output of events" / "0").read_text(),
        re.S,
    )
    assert "the evaluation is broken off" in said
    assert "after step 4" in said
    assert result(runs / name)["text"]["step"] == 4
    evaluated = [row["step"] for row in rows(runs / name) if "text/eval/b/knn" in row]
    assert evaluated == [4]


def test_an_error_on_one_is_said_and_ends_all_with_its_code(runs: Path) -> None:
    said = (runs / "output of events" / "0").read_text()
    assert said.count("selfdistill: audio: the features are not finite") == 1
    assert "the features are not finite" not in (runs / "output of events" / "1").read_text()
    assert result(runs / "error")["text"]["step"] == 4
