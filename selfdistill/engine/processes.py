"""How the processes of a run wait for each other, and what is said where one waits in vain."""

import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from torch.distributed import DistError

from selfdistill.errors import SelfdistillError
from selfdistill.outputs import say

TOO_LONG = 60.0
"""Seconds in which the processes of a run that are started together have met."""

HEAD_START = 3.0
"""Seconds that the process which failed has to say why and to exit. Launchers take the exit code of
the first, and end the others."""


class LostProcess(SelfdistillError):
    """Another process of the run has ended, which says why itself."""


def are_several() -> bool:
    """Whether a launcher has started more processes than this one."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def waiting_told() -> Iterator[None]:
    """Say so once, on each node, where the processes of a run have not met after ``TOO_LONG``.

    They wait for hours, in case a node starts late; but a port that is closed looks the same.
    """
    if not are_several() or os.environ.get("LOCAL_RANK", "0") != "0":
        yield
        return
    timer = threading.Timer(TOO_LONG, say, [_still_waiting()])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _still_waiting() -> str:
    rank, number, host, port = (
        os.environ.get(name, "?") for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    )
    return (
        f"selfdistill: after {TOO_LONG:.0f} s process {rank} still waits for all {number} "
        f"processes of the run to meet at {host}:{port}; have all been started, with the same "
        "number and address, and can this node reach that one?"
    )


@contextmanager
def lost_processes_explained() -> Iterator[None]:
    """Have one line in place of a traceback in each process that waited for another one in vain.

    Raises:
        LostProcess: the other one has ended.
        SelfdistillError: it does not answer, so that nobody else can tell.
    """
    try:
        yield
    except RuntimeError as error:
        # gloo has no exception of its own
        if not isinstance(error, DistError) and not re.search(r"\bgloo\b", str(error)):
            raise
        time.sleep(HEAD_START)
        reason = str(error).splitlines()[0][:200]
        if re.search(r"time[d ]*out", str(error), re.IGNORECASE):
            raise SelfdistillError(
                f"process {os.environ.get('RANK', '0')} has waited too long for another one, which "
                f"hangs or cannot be reached; it is one of those that do not say this ({reason})"
            ) from error
        raise LostProcess(
            f"another process of the run has ended; look for what it said last ({reason})"
        ) from error
