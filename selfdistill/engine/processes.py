"""What becomes of a run's other processes when one of them has ended."""

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager

from torch.distributed import DistError

from selfdistill.errors import SelfdistillError

HEAD_START = 3.0
"""Seconds that the process which failed has to say why and to exit. Launchers take the exit code of
the first, and end the others."""


class LostProcess(SelfdistillError):
    """Another process of the run has ended, which says why itself."""


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
