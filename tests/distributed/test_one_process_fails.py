"""One of two processes fails: both end soon, and what went wrong is said once."""

import json
import os
import re
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from launching import rows
from tiny import samples, write_shard
from worlds import Job, train

from selfdistill import cli, pretrain
from selfdistill.data.loader import Source, _Stream
from selfdistill.engine import accelerator, processes
from selfdistill.errors import SelfdistillError, UserError
from selfdistill.objective.data2vec import Data2Vec
from selfdistill.run_data import open_source

Words = Callable[..., list[str]]
LOST = "selfdistill: another process of the run has ended"
BAD = {"few bad": 8, "bad": 12}
"""Of the 100 samples of a step."""


class Fault:
    """What goes wrong in the jobs to come, on which process; the patches are made once."""

    kind, rank, calls = "", "", 0

    @classmethod
    def comes(cls, kind: str) -> bool:
        """Whether this call of what is faulty is the one that fails."""
        if (cls.kind, cls.rank) != (kind, os.environ["RANK"]):
            return False
        cls.calls += 1
        return cls.calls > 3


def _begin(kind: str, rank: str) -> None:
    if not Fault.kind:
        _patch()
    Fault.kind, Fault.rank, Fault.calls = kind, rank, 0
    accelerator.PATIENCE = timedelta(seconds=5 if kind == "stuck" else 600)
    print(f"\nbegins at {time.monotonic()}", flush=True)


def _patch() -> None:
    forward, load, fingerprint = Data2Vec.forward, _Stream.load, Source.fingerprint
    processes.HEAD_START, cli.HEAD_START = 0.2, 0.1

    def computed(self: Data2Vec, batches: Any) -> Any:
        if Fault.comes("model"):
            raise ValueError("the model broke")
        if Fault.comes("stuck"):
            time.sleep(accelerator.PATIENCE.total_seconds() + 3)
        return forward(self, batches)

    def loaded(self: _Stream, *place: int) -> Any:
        if Fault.comes("loader"):
            raise SelfdistillError("data.train: shard 'x.tar' is not what it was")
        if Fault.comes("killed"):
            os.kill(os.getpid(), signal.SIGKILL)
        found = load(self, *place)
        bad = BAD.get(Fault.kind, 0) if Fault.rank == os.environ["RANK"] else 0
        return replace(found, seen=100, bad=[("k", "odd", "")] * bad)

    def opened(*given: Any) -> Source:
        if (Fault.kind, Fault.rank) == ("shards", os.environ["RANK"]):
            raise UserError("data.train: no file matches 'x.tar'")
        return open_source(*given)

    def found(self: Source) -> dict[str, Any]:
        other = (Fault.kind, Fault.rank) == ("files", os.environ["RANK"])
        return {**fingerprint(self), **({"samples": 7} if other else {})}

    Data2Vec.forward, _Stream.load = computed, loaded  # type: ignore[method-assign]
    Source.fingerprint = found  # type: ignore[method-assign]
    pretrain.open_source = opened


def model_on_the_other() -> None:
    _begin("model", "1")


def model_on_the_main_one() -> None:
    _begin("model", "0")


def loader_on_the_other() -> None:
    _begin("loader", "1")


def shards_missing_on_the_other() -> None:
    _begin("shards", "1")


def worker_killed() -> None:
    _begin("killed", "1")


def main_one_stuck() -> None:
    _begin("stuck", "0")


def other_files_on_the_other() -> None:
    _begin("files", "1")


def bad_samples_on_the_other() -> None:
    _begin("bad", "1")


def few_bad_samples_on_the_other() -> None:
    _begin("few bad", "1")


def nothing() -> None:
    _begin("nothing", "0")


FAULTS = [
    model_on_the_other,
    model_on_the_main_one,
    loader_on_the_other,
    other_files_on_the_other,
    shards_missing_on_the_other,
    worker_killed,
    main_one_stuck,
    bad_samples_on_the_other,
    few_bad_samples_on_the_other,
    nothing,
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("failing")


@pytest.fixture(scope="module")
def said(words: Words, folder: Path) -> list[list[str]]:
    """What the main process and the other said in each job."""
    shards = [
        str(write_shard(folder / f"{number}.tar", samples("image", count, number)))
        for number, count in enumerate((1, 17, 30))
    ]

    def job(setup: Callable[[], None], *more: str, code: int | tuple[int, int] = 1) -> Job:
        run = folder / setup.__name__
        return Job(words("image", run, "train.steps=12", *more), setup=setup, code=code)

    jobs = [job(fault) for fault in FAULTS[:3]]
    jobs.append(job(other_files_on_the_other, code=2))
    jobs.append(job(shards_missing_on_the_other, code=2))
    jobs.append(job(worker_killed, "data.workers=1"))
    jobs.append(job(main_one_stuck))
    jobs.append(job(bad_samples_on_the_other, code=4))
    jobs.append(job(few_bad_samples_on_the_other, code=0))
    uneven = f"data.train={json.dumps(shards[:1] + shards[2:])}"
    jobs.append(job(nothing, uneven, "data.workers=2", code=0))
    train(2, jobs, folder / "output")
    texts = [(folder / "output" / str(rank)).read_text() for rank in (0, 1)]
    parts = [re.split(r"^begins at ", text, flags=re.M)[1:] for text in texts]
    return [list(pair) for pair in zip(*parts, strict=True)]


def lines(text: str) -> list[str]:
    """Of the errors."""
    return [line for line in text.splitlines() if line.startswith(("selfdistill:", "Traceback"))]


def test_a_model_that_raises_on_the_other_process(said: Sequence[Sequence[str]]) -> None:
    main, other = said[FAULTS.index(model_on_the_other)]
    (line,) = lines(main)
    assert line.startswith(LOST)
    assert lines(other) == ["Traceback (most recent call last):"]
    assert other.count("ValueError: the model broke") == 1


def test_a_model_that_raises_on_the_main_process(said: Sequence[Sequence[str]]) -> None:
    main, other = said[FAULTS.index(model_on_the_main_one)]
    assert lines(main) == ["Traceback (most recent call last):"]
    assert main.count("ValueError: the model broke") == 1
    assert lines(other) == []


def test_a_loader_that_gives_up(said: Sequence[Sequence[str]]) -> None:
    main, other = said[FAULTS.index(loader_on_the_other)]
    (line,) = lines(main)
    assert line.startswith(LOST)
    assert lines(other) == ["selfdistill: data.train: shard 'x.tar' is not what it was"]


def test_other_files_on_one_of_them(said: Sequence[Sequence[str]], folder: Path) -> None:
    """Each would train on its share of something else."""
    main, other = said[FAULTS.index(other_files_on_the_other)]
    (line,) = lines(main)
    assert re.search(r"data\.train: the main process finds 48 .* process 1 7 samples in", line)
    assert lines(other) == [line.replace("selfdistill:", "selfdistill: process 1:")]
    assert not rows(folder / "other_files_on_the_other")


def test_shards_that_the_other_process_has_not(said: Sequence[Sequence[str]]) -> None:
    """The main one says it, too: a launcher ends the others soon after it."""
    main, other = said[FAULTS.index(shards_missing_on_the_other)]
    assert lines(main) == ["selfdistill: data.train: no file matches 'x.tar'"]
    assert lines(other) == ["selfdistill: process 1: data.train: no file matches 'x.tar'"]


def test_a_data_worker_killed_by_the_system(said: Sequence[Sequence[str]]) -> None:
    main, other = said[FAULTS.index(worker_killed)]
    (line,) = lines(main)
    assert line.startswith(LOST)
    (line,) = lines(other)
    assert "a data worker died (" in line  # torch may find out by a signal, or that it is gone
    assert "lower data.workers or train.batch_size" in line


def test_a_main_process_that_does_not_answer(said: Sequence[Sequence[str]]) -> None:
    """The others have to say so: it will not."""
    main, other = said[FAULTS.index(main_one_stuck)]
    (line,) = lines(main)
    assert line.startswith(LOST)
    (line,) = lines(other)
    assert line.startswith("selfdistill: process 1 has waited too long for another one, which hang")


def test_bad_samples_count_together(said: Sequence[Sequence[str]], folder: Path) -> None:
    """Those of one process may be more than the share that is allowed."""
    main, other = said[FAULTS.index(bad_samples_on_the_other)]
    (line,) = lines(main)
    assert "skip budget exceeded: 12 of 200 samples (6.0%) were bad" in line
    assert "12 x odd" in line
    assert lines(other) == []
    for text in said[FAULTS.index(few_bad_samples_on_the_other)]:
        assert lines(text) == []
    assert [row["bad_samples"] for row in rows(folder / "few_bad_samples_on_the_other")][-1] == 96


def test_all_end_soon(said: Sequence[Sequence[str]]) -> None:
    """Seconds from one job's start to the next one's, on either process."""
    for rank in (0, 1):
        began = [float(pair[rank].split()[0]) for pair in said]
        assert all(0 < later - earlier < 30 for earlier, later in pairwise(began))


def test_fewer_shards_than_workers(said: Sequence[Sequence[str]], folder: Path) -> None:
    """Two processes of two workers each, and two shards, one of them of a single sample."""
    assert [row["step"] for row in rows(folder / "nothing")] == [*range(1, 13)]
    assert all(lines(text) == [] for text in said[-1])
