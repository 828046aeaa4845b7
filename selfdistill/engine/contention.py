"""Tells a run whose threads wait for cores that others hold: programs, or its data workers."""

import time
from contextlib import suppress
from pathlib import Path

import torch

SCHEDULED = Path("/proc/thread-self/schedstat")
"""Nanoseconds that the thread ran, and that it could have run but had no core; then a count."""
MUCH = 0.25
"""Share of the time without a core above which threads cost more than they bring."""


class Contention:
    """Watches how long this thread has no core, from one line of the log to the next.

    All threads of a matrix product wait for the last one, and do so busily: where one of them has
    no core, the others keep theirs from whoever could go on, and a step takes many times as long as
    on one thread.

    Args:
        device: of the run; on a GPU the host's threads do not matter.
    """

    def __init__(self, device: torch.device) -> None:
        self._watches = device.type == "cpu" and torch.get_num_threads() > 1
        self._before = _now()

    def signs(self) -> list[str]:
        """What to tell the user, once in a run."""
        if not self._watches:
            return []
        (began, without), (now, still_without) = self._before, _now()
        self._before = now, still_without
        share = (still_without - without) / max(now - began, 1e-9)
        if share <= MUCH:
            return []
        self._watches = False
        return [
            f"the cores of this machine are busy: {share:.0%} of the time there was none for the "
            f"run's main thread, and its {torch.get_num_threads()} threads wait for each other; "
            "OMP_NUM_THREADS=1 is likely to be much faster"
        ]


def _now() -> tuple[float, float]:
    """Seconds: the time, and how long this thread has had no core (0: the system does not tell)."""
    without = 0
    with suppress(OSError, ValueError, IndexError):
        without = int(SCHEDULED.read_text().split()[1])
    return time.monotonic(), without / 1e9
