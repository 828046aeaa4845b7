"""Threads that wait for cores are told of, where fewer would help, and once."""

from pathlib import Path

import pytest
import torch

from selfdistill.engine import contention
from selfdistill.engine.contention import Contention

CPU, GPU = torch.device("cpu"), torch.device("cuda")


class Clock:
    """What the system tells of this thread."""

    def __init__(self, path: Path) -> None:
        self.path, self.now, self.without = path, 100.0, 7.0
        self.advance(0, 0)

    def monotonic(self) -> float:
        return self.now

    def advance(self, seconds: float, without: float) -> None:
        self.now, self.without = self.now + seconds, self.without + without
        self.path.write_text(f"123456789 {round(self.without * 1e9)} 42\n")


@pytest.fixture
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock(tmp_path / "schedstat")
    monkeypatch.setattr(contention, "SCHEDULED", clock.path)
    monkeypatch.setattr(contention, "time", clock)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    return clock


def test_a_busy_machine_is_told_of_once(clock: Clock) -> None:
    watched = Contention(CPU)
    clock.advance(20, without=2)
    assert watched.signs() == []
    clock.advance(10, without=6)  # what was before does not count
    (said,) = watched.signs()
    assert "60% of the time there was none for the run's main thread, and its 2 threads" in said
    assert "OMP_NUM_THREADS=1" in said
    clock.advance(10, without=9)
    assert watched.signs() == []


@pytest.mark.parametrize("kind", ["on a GPU", "one thread", "not told"])
def test_where_fewer_threads_would_not_help(
    kind: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "one thread":
        monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    if kind == "not told":
        clock.path.write_text("")
    watched = Contention(GPU if kind == "on a GPU" else CPU)
    if kind != "not told":
        clock.advance(10, without=9)
    clock.now += 10
    assert watched.signs() == []


def test_what_the_system_tells_is_understood() -> None:
    before = contention._now()
    sum(range(100_000))
    now = contention._now()
    assert now[0] > before[0]
    assert 0 <= now[1] - before[1] <= now[0] - before[0] + 0.01
