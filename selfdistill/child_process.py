"""What a process does that another one has started."""

import multiprocessing
import os
import signal
import threading
from typing import Any


def obey_parent() -> None:
    """Leave Ctrl-C, which reaches both, to the process that started this one, and end with it,
    however that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    threading.Thread(target=_follow, args=(parent,), daemon=True).start()


def _follow(parent: Any) -> None:
    parent.join()
    os._exit(1)
