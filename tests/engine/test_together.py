"""Work that processes share, on a single one; several are in tests/distributed."""

import signal
from collections.abc import Iterator

import numpy as np
import pytest
from accelerate import Accelerator
from launching import fresh_accelerate

from selfdistill.engine.signals import StopSignal
from selfdistill.engine.together import Together
from selfdistill.errors import HealthError


@pytest.fixture
def together() -> Iterator[Together]:
    stop = StopSignal()
    with fresh_accelerate(), stop.caught():
        yield Together(Accelerator(cpu=True), stop)


def test_what_is_found_and_gathered(together: Together) -> None:
    arrays = [np.arange(3), np.ones((2, 2), dtype=np.float32)]
    found = together.run(lambda: together.gather(arrays))
    assert found is not None
    assert [len(place) for place in found[0]] == [1, 1]
    for (place,), array in zip(found[0], arrays, strict=True):
        np.testing.assert_array_equal(place, array)
    # work that finds nothing is done, too
    assert together.run(lambda: None) == (None,)


def test_a_signal_ends_it_before_behind_and_while_gathering(together: Together) -> None:
    done: list[int] = []

    def work() -> None:
        together.gather([])
        done.append(1)
        signal.raise_signal(signal.SIGTERM)
        done.append(2)

    assert together.run(work) is None
    assert together.run(work) is None
    assert done == [1]
    together.complete(lambda: done.append(3))
    assert done == [1, 3]


def test_errors_are_those_of_the_work(together: Together) -> None:
    def fail() -> None:
        raise HealthError("collapsed")

    for way in (together.run, together.complete):
        with pytest.raises(HealthError, match="collapsed"):
            way(fail)
    with pytest.raises(ZeroDivisionError):
        together.run(lambda: 1 // 0)
