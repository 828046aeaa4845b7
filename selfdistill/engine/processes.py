"""What becomes of a run's other processes when one of them has ended."""

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
    """Another process of the run has ended."""


@contextmanager
def lost_processes_explained() -> Iterator[None]:
    """Have one line in place of a traceback in each process that waited for one which has failed.

    Raises:
        LostProcess: in place of what torch raises.
    """
    try:
        yield
    except RuntimeError as error:
        # gloo has no exception of its own
        if not isinstance(error, DistError) and not re.search(r"\bgloo\b", str(error)):
            raise
        time.sleep(HEAD_START)
        raise LostProcess(
            "another process of the run has ended, or kept this one waiting for too long; look for "
            f"what it said last ({str(error).splitlines()[0][:200]})"
        ) from error
