"""Tasks over processes."""

import os
import signal
import time
from pathlib import Path

import pytest

from selfdistill.errors import SelfdistillError, UserError
from selfdistill.packing.workers import Bar, advance, in_parallel


def square(number: int) -> int:
    advance(1, number)
    return number * number


def fail_at_3(number: int) -> int:
    if number == 3:
        raise UserError("three")
    return square(number)


def die(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return square(number)


def mark(path: str) -> None:
    for _ in range(200):
        time.sleep(0.005)
        advance(1, 1)
    Path(path).touch()


@pytest.mark.parametrize("workers", [1, 2])
def test_every_task_is_done_once(workers: int) -> None:
    with Bar("testing", 4950) as bar:
        found = list(in_parallel(square, range(100), workers, __name__, bar))
        assert sorted(found) == [n * n for n in range(100)]
        bar.skip(7)
    assert (bar._samples, bar._size) == (100, 4950)


def test_tasks_are_taken_as_they_are_needed() -> None:
    taken = []

    def tasks() -> "list[int]":
        for number in range(50):
            taken.append(number)
            yield number

    with Bar("testing", 0) as bar:
        results = in_parallel(square, tasks(), 2, __name__, bar)
        next(results)
        assert len(taken) < 12
        results.close()


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_comes_through(workers: int) -> None:
    with Bar("testing", 0) as bar, pytest.raises(UserError, match="three"):
        list(in_parallel(fail_at_3, range(10), workers, __name__, bar))


def test_a_killed_worker_is_said() -> None:
    with Bar("testing", 0) as bar, pytest.raises(SelfdistillError, match="fewer --workers"):
        list(in_parallel(die, range(10), 2, __name__, bar))


def test_work_that_is_called_off_ends_soon(tmp_path: Path) -> None:
    """Closing is what an exception in the caller does."""
    paths = [str(tmp_path / name) for name in "abcdefgh"]
    with Bar("testing", 0) as bar:
        results = in_parallel(mark, paths, 2, __name__, bar)
        next(results)
        results.close()
    assert len(list(tmp_path.iterdir())) <= 2
