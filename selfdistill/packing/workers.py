"""Work in parallel over processes, with a bar that shows how far all of them are."""

import multiprocessing
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from itertools import islice
from typing import Any, TypeVar

from tqdm import tqdm

from selfdistill.child_process import obey_parent
from selfdistill.errors import SelfdistillError

Task = TypeVar("Task")

_AHEAD = 2
"""Tasks given out per worker; each may hold some megabytes."""
_SHOWN_EVERY = 0.3
"""Seconds."""


class Stopped(Exception):
    """The work was called off."""


def _tell_nobody(samples: int, size: int, length: float) -> None:
    pass


_report: Callable[[int, int, float], None] = _tell_nobody


def advance(samples: int, size: int, length: float = 0.0) -> None:
    """Tell the bar what was done; called in the process that works.

    Args:
        size: bytes, out of the bar's ``total``.
        length: in ``Bar``'s unit.
    """
    _report(samples, size, length)


class Bar:
    """A bar over bytes, with samples and, where they have a unit, their length behind it.

    Args:
        words: what is being done.
        total: bytes.
        unit: of the length; hours are shown for seconds.
    """

    def __init__(self, words: str, total: int, unit: str = "") -> None:
        self._unit = unit
        self._samples, self._size, self._length = 0, 0, 0.0
        self._bar = tqdm(
            total=total, desc=words, unit="B", unit_scale=True, disable=None, dynamic_ncols=True
        )

    def add(self, samples: int, size: int, length: float) -> None:
        self.show(self._samples + samples, self._size + size, self._length + length)

    def show(self, samples: int, size: int, length: float) -> None:
        """What is done so far."""
        new = size - self._size
        self._samples, self._size, self._length = samples, size, length
        self._bar.set_postfix_str(self._words(), refresh=False)
        self._bar.update(new)

    def skip(self, size: int) -> None:
        """Bytes that were done before."""
        self._bar.update(size)

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def _words(self) -> str:
        words = f"{self._samples:,} samples"
        if self._unit == "seconds":
            words += f", {self._length / 3600:.1f} h"
        return words


def in_parallel(
    function: Callable[[Task], None], tasks: Iterable[Task], workers: int, preload: str, bar: Bar
) -> None:
    """Call ``function`` with each task, in no certain order.

    Args:
        function: of a module; it calls ``advance``.
        tasks: taken as they are needed.
        workers: processes; 1: this one.
        preload: a module that workers share.
        bar: is kept up to date.

    Raises:
        SelfdistillError: a worker died.
        Exception: what ``function`` raises; the tasks that have begun are called off.
    """
    if workers == 1:
        global _report
        before, _report = _report, bar.add
        try:
            for task in tasks:
                function(task)
        finally:
            _report = before
        return
    # not fork: this process may have threads
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([preload, __name__])
    # samples, bytes and length done, and whether to stop
    counts = context.Array("d", 4)
    executor = ProcessPoolExecutor(workers, context, _start_worker, (counts,))
    rest, running = iter(tasks), set[Future[None]]()
    try:
        while True:
            some = islice(rest, _AHEAD * workers - len(running))
            running |= {executor.submit(function, task) for task in some}
            if not running:
                return
            done, running = wait(running, _SHOWN_EVERY, FIRST_COMPLETED)
            samples, size, length, _ = counts[:]
            bar.show(int(samples), int(size), length)
            for future in done:
                future.result()
    except BrokenProcessPool as error:
        raise SelfdistillError(
            "a worker process was killed, perhaps for its memory; run the same command again, with "
            "fewer --workers, to go on"
        ) from error
    finally:
        counts[3] = 1
        executor.shutdown(cancel_futures=True)


def _start_worker(counts: Any) -> None:
    global _report
    _report = partial(_count, counts)
    obey_parent()


def _count(counts: Any, samples: int, size: int, length: float) -> None:
    with counts.get_lock():
        if counts[3]:
            raise Stopped
        for place, value in enumerate((samples, size, length)):
            counts[place] += value
