"""How often connections broke and were tried again, counted by each process for itself."""

import os
from collections import deque

_happened: deque[int] = deque()
"""The process of each; a fork copies those of its parent."""


def add_retry() -> None:
    """Count one; any thread may do so."""
    _happened.append(os.getpid())


def take_retries() -> int:
    """Those of this process since this was last asked."""
    found = [_happened.popleft() for _ in range(len(_happened))]
    return found.count(os.getpid())
