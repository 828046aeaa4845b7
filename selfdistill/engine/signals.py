"""Signals that ask a run to stop."""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TypeVar

ASK_TO_STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
SAME_SIGNAL_SECONDS = 1.0

T = TypeVar("T")


class _Interrupted(BaseException):
    """What is going on ends here; no handler of an ``Exception`` may take it for a fault."""


class StopSignal:
    """The first signal that asked the run to stop; a second one ends the program at once.

    A launcher passes on the signal that the whole group had already, so that one which follows
    within ``SAME_SIGNAL_SECONDS`` is the same request.

    Attributes:
        number: of the signal; 0: none came.
    """

    def __init__(self) -> None:
        self.number = 0
        self._since = 0.0
        self._interrupts = False

    @contextlib.contextmanager
    def caught(self) -> Iterator[None]:
        """Note signals inside instead of dying of them.

        SIGHUP, by which a terminal that is closed tells its programs, stays ignored under nohup.
        """
        before = {}
        for number in ASK_TO_STOP:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                before[number] = signal.signal(number, self._note)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def until_asked(self, work: Callable[[], T]) -> T | None:
        """What ``work`` returns; None: a signal, also one that came before, put an end to it."""
        self._interrupts = True
        try:
            try:
                return None if self.number else work()
            finally:
                self._interrupts = False
        except _Interrupted:
            return None

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Inside work that ``until_asked`` does: a signal that comes in here ends it behind here.

        An error in here ends it anyway, and no signal takes the error's place.
        """
        self._interrupts = False
        yield
        self._interrupts = True
        if self.number:
            raise _Interrupted

    def explained(self, step: int, saved: object) -> str:
        """Why a run ends after ``step``, and where its state is ``saved``."""
        if not self.number:
            return f"stopped after step {step} together with another process"
        return (
            f"stopped by signal {signal.Signals(self.number).name} after step {step}; "
            f"the state is kept in {saved}: run the same command to go on"
        )

    def _note(self, number: int, _: FrameType | None) -> None:
        if not self.number:
            self.number, self._since = number, time.monotonic()
            if self._interrupts:
                raise _Interrupted
        elif time.monotonic() - self._since > SAME_SIGNAL_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
