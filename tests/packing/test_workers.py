"""Tasks over processes."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from selfdistill.errors import SelfdistillError, UserError
from selfdistill.packing.workers import Bar, advance, in_parallel


def count(number: int) -> None:
    advance(1, number)


def fail_at_3(number: int) -> None:
    if number == 3:
        raise UserError("three")
    count(number)


def die(number: int) -> None:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    count(number)


def mark(path: str) -> None:
    if not path:
        raise UserError("none")
    for _ in range(200):
        time.sleep(0.005)
        advance(1, 1)
    Path(path).touch()


@pytest.mark.parametrize("workers", [1, 2])
def test_every_task_is_done_once(workers: int) -> None:
    with Bar("testing", 4950) as bar:
        in_parallel(count, range(100), workers, __name__, bar)
        bar.skip(7)
    assert (bar._samples, bar._size) == (100, 4950)


def test_tasks_are_taken_as_they_are_needed() -> None:
    taken = []

    def tasks() -> Iterator[int]:
        for number in range(50):
            taken.append(number)
            yield number

    with Bar("testing", 0) as bar, pytest.raises(UserError, match="three"):
        in_parallel(fail_at_3, tasks(), 2, __name__, bar)
    assert len(taken) < 12


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_comes_through(workers: int) -> None:
    with Bar("testing", 0) as bar, pytest.raises(UserError, match="three"):
        in_parallel(fail_at_3, range(10), workers, __name__, bar)


def test_a_killed_worker_is_said() -> None:
    with Bar("testing", 0) as bar, pytest.raises(SelfdistillError, match="fewer --workers"):
        in_parallel(die, range(10), 2, __name__, bar)


def test_work_that_is_called_off_ends_soon(tmp_path: Path) -> None:
    paths = [str(tmp_path / name) for name in "abcdefgh"]
    with Bar("testing", 0) as bar, pytest.raises(UserError, match="none"):
        in_parallel(mark, [paths[0], "", *paths[1:]], 2, __name__, bar)
    assert not list(tmp_path.iterdir())
