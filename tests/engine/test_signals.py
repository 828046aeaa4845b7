"""A signal that asks a run to stop: noted, and an end to what can be made up for."""

import signal
import time
from collections.abc import Iterator

import pytest

from selfdistill.engine.signals import SAME_SIGNAL_SECONDS, StopSignal


@pytest.fixture
def stop() -> Iterator[StopSignal]:
    found = StopSignal()
    with found.caught():
        yield found


def test_work_that_nobody_stops(stop: StopSignal) -> None:
    assert stop.until_asked(lambda: 7) == 7
    assert stop.number == 0


def test_a_signal_ends_work_but_nothing_else(stop: StopSignal) -> None:
    done: list[int] = []

    def work() -> int:
        try:
            done.append(1)
            signal.raise_signal(signal.SIGUSR1)
            done.append(2)
        except Exception:  # it is no fault that a handler of faults may take
            done.append(3)
        return 7

    assert stop.until_asked(work) is None
    assert done == [1]
    assert stop.number == signal.SIGUSR1


@pytest.mark.parametrize(("before", "noted"), [(signal.SIG_DFL, True), (signal.SIG_IGN, False)])
def test_a_terminal_that_is_closed_asks_unless_nohup_said_no(
    before: signal.Handlers, noted: bool
) -> None:
    found, kept = StopSignal(), signal.signal(signal.SIGHUP, before)
    try:
        with found.caught():
            signal.raise_signal(signal.SIGHUP)
        assert found.number == (signal.SIGHUP if noted else 0)
        assert signal.getsignal(signal.SIGHUP) == before
    finally:
        signal.signal(signal.SIGHUP, kept)


def test_a_launchers_repetition_is_no_second_signal(
    stop: StopSignal, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, deaths = [100.0], []
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    signal.raise_signal(signal.SIGINT)
    now[0] += 0.99 * SAME_SIGNAL_SECONDS
    signal.raise_signal(signal.SIGTERM)
    assert stop.number == signal.SIGINT
    now[0] += 0.02 * SAME_SIGNAL_SECONDS
    raised = signal.raise_signal
    monkeypatch.setattr(signal, "raise_signal", deaths.append)
    raised(signal.SIGTERM)
    assert deaths == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_one_that_came_before_leaves_work_undone(stop: StopSignal) -> None:
    signal.raise_signal(signal.SIGTERM)
    done: list[int] = []
    assert stop.until_asked(lambda: done.append(1)) is None
    assert done == []


def test_faults_are_those_of_the_work(stop: StopSignal) -> None:
    with pytest.raises(ZeroDivisionError):
        stop.until_asked(lambda: 1 // 0)
    signal.raise_signal(signal.SIGTERM)  # noted only: nothing is being done
    assert stop.number == signal.SIGTERM


def test_work_may_hold_a_signal_back_for_a_while(stop: StopSignal) -> None:
    done: list[int] = []

    def work() -> None:
        with stop.held():
            signal.raise_signal(signal.SIGTERM)
            done.append(1)
        done.append(2)

    assert stop.until_asked(work) is None
    assert done == [1]


def test_an_error_while_a_signal_is_held_back_is_the_error(stop: StopSignal) -> None:
    def work() -> None:
        try:
            with stop.held():
                signal.raise_signal(signal.SIGTERM)
                raise KeyError("here")
        finally:
            signal.raise_signal(signal.SIGINT)  # on the way out, too

    with pytest.raises(KeyError, match="here"):
        stop.until_asked(work)
