"""A signal stops all processes, also where one of them waits for data that may never come."""

import os
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from launching import checkpoint, rows, weights
from worlds import Job, train

from selfdistill.data.loader import _Stream

Words = Callable[..., list[str]]
STEPS = 6


class Stall:
    """From which step of the data on none comes to a process, and who is asked to stop then; the
    patch is made once."""

    step, rank, asked = -1, "", ""
    is_patched = False


def _stall(step: int, rank: str, asked: str) -> None:
    if not Stall.is_patched:
        _patch()
    Stall.step, Stall.rank, Stall.asked = step, rank, asked
    print(f"\nstalls at {step} on {rank}, {asked} asked", flush=True)


def _patch() -> None:
    Stall.is_patched, load = True, _Stream.load

    def loaded(self: _Stream, step: int, *parts: Any) -> Any:
        own = os.environ["RANK"]
        if step == Stall.step and own in Stall.asked:
            # the others are in the step already, or wait, too
            timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM))
            timer.start()
        if step == Stall.step and own in Stall.rank:
            time.sleep(600)
        return load(self, step, *parts)

    _Stream.load = loaded  # type: ignore[method-assign]


# where it stalls, on whom, who is asked to stop, and whether the model is in shards
STALLS = {
    "the other": (3, "1", "1", False),
    "the main one": (3, "0", "01", True),
    "both": (4, "01", "01", False),
    "the first step": (0, "1", "1", False),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stopping")


@pytest.fixture(scope="module")
def said(words: Words, folder: Path) -> str:
    """What the main process said."""

    def job(run: str, sharded: bool, **named: Any) -> Job:
        # verdicts are read a step late where nothing is done at the end of a step
        more = ["checkpoint.every=100", f"train.steps={STEPS}", "log.every=5"]
        more += ["train.accumulate=2"] if sharded else []
        return Job(words("image", folder / run, *more), sharded=sharded, **named)

    jobs = [job(f"whole {sharded}", sharded) for sharded in (False, True)]
    for name, (*stall, sharded) in STALLS.items():
        jobs.append(job(name, sharded, setup=partial(_stall, *stall), code=75))
        jobs.append(job(name, sharded, setup=partial(_stall, -1, "", "")))
    train(2, jobs, folder / "output")
    return (folder / "output" / "0").read_text()


@pytest.mark.parametrize("name", STALLS)
def test_it_stops_and_goes_on(name: str, said: str, folder: Path) -> None:
    step, rank, asked, sharded = STALLS[name]
    run, whole = folder / name, folder / f"whole {sharded}"
    _, stopped = said.split(f"\nstalls at {step} on {rank}, {asked} asked\n")
    assert f"after step {step}" in stopped.split("stalls at")[0]
    assert (checkpoint(run, step) / "manifest.json").exists()
    assert weights(run, STEPS) == weights(whole, STEPS)
    for path in (run, whole):
        assert [row["step"] for row in rows(path)] == [5, STEPS]
    for row, expected in zip(rows(run), rows(whole), strict=True):
        for key in ("loss", "target_std", "explained_variance", "left_out_steps", "bad_samples"):
            # what was summed up before is the main one's, which changes the order of the sums
            assert row[key] == pytest.approx(expected[key], rel=1e-9)
    assert not (run / "left_out.jsonl").exists()
