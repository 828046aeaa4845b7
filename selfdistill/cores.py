"""How many cores there are."""

import os


def cores() -> int:
    """Those that this process may use."""
    has_affinity = hasattr(os, "sched_getaffinity")  # not on every system
    return len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
