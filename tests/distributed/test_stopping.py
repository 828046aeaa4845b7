"""A signal stops all processes, also where one of them waits for data that may never come."""

import os
import re
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


# where it stalls, on whom, and who is asked to stop
STALLS = {
    "the other": (3, "1", "1"),
    "the main one": (3, "0", "01"),
    "both": (4, "01", "01"),
    "the first step": (0, "1", "1"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stopping")


@pytest.fixture(scope="module")
def said(words: Words, folder: Path) -> list[str]:
    """What each process said."""

    def job(run: str, sharded: bool, **named: Any) -> Job:
        # verdicts are read a step late where nothing is done at the end of a step
        more = ["checkpoint.every=100", f"train.steps={STEPS}", "log.every=5"]
        more += ["train.accumulate=2"] if sharded else []
        return Job(words("image", folder / run, *more), sharded=sharded, **named)

    jobs = [job(f"whole {sharded}", sharded) for sharded in (False, True)]
    for sharded in (False, True):
        for name, stall in STALLS.items():
            jobs.append(job(f"{name} {sharded}", sharded, setup=partial(_stall, *stall), code=75))
            jobs.append(job(f"{name} {sharded}", sharded, setup=partial(_stall, -1, "", "")))
    train(2, jobs, folder / "output")
    return [(folder / "output" / str(rank)).read_text() for rank in (0, 1)]


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("name", STALLS)
def test_it_stops_and_goes_on(name: str, sharded: bool, said: list[str], folder: Path) -> None:
    step, rank, asked = STALLS[name]
    run, whole = folder / f"{name} {sharded}", folder / f"whole {sharded}"
    parts = re.split(r"^stalls at ", said[0], flags=re.M)
    stopped = [p for p in parts if p.startswith(f"{step} on {rank}, {asked} asked")][sharded]
    assert f"after step {step}" in stopped
    assert (checkpoint(run, step) / "manifest.json").exists()
    assert weights(run, STEPS) == weights(whole, STEPS)
    for path in (run, whole):
        assert [row["step"] for row in rows(path)] == [5, STEPS]
    for row, expected in zip(rows(run), rows(whole), strict=True):
        for key in ("loss", "target_std", "explained_variance", "left_out_steps", "bad_samples"):
            assert row[key] == expected[key]
    assert not (run / "left_out.jsonl").exists()
