"""Whether a run is still going on, as far as its folder tells; nothing is locked or written."""

import os
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite, nan
from pathlib import Path
from statistics import median
from typing import Literal

from selfdistill.amounts import duration
from selfdistill.run_folder.files import SavedStep
from selfdistill.run_folder.layout import LOCK
from selfdistill.run_folder.record import Record

State = Literal["running", "silent", "unknown", "stopped", "finished"]
_HOLDER = re.compile(r"process (\d+) on host (\S+)")
_LATE = 5.0
"""So many times the usual wait for a line is too long; an evaluation takes that of some lines."""
_LEAST_WAIT = 60.0


@dataclass(frozen=True)
class Holder:
    """Who wrote the lock file of a run.

    Attributes:
        process: its number.
        host: where it runs.
        holds: whether it has the lock or, where locks cannot be seen, is there; None: it runs on
            another host, and cannot be seen.
    """

    process: int
    host: str
    holds: bool | None

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}"


def holder(run: Path, locks: Path = Path("/proc/locks")) -> Holder | None:
    """Who holds a run, or held it last; None where there is no lock file that says so."""
    try:
        status = (run / LOCK).stat()
        found = _HOLDER.search((run / LOCK).read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return None
    if found is None:
        return None
    process, host = int(found[1]), found[2]
    if host != socket.gethostname():
        return Holder(process, host, None)
    try:
        lines = locks.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return Holder(process, host, _exists(process))
    return Holder(process, host, any(_is_of(line, status, process) for line in lines))


def _is_of(line: str, status: os.stat_result, process: int) -> bool:
    """Whether a line of /proc/locks is a lock on a file."""
    words = line.replace("->", "").split()
    if len(words) < 6 or words[1] != "FLOCK":
        return False
    device, _, inode = words[5].rpartition(":")
    mine = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
    # a folder that is mounted once more, over the network or in layers, has other numbers there
    return words[4] == str(process) or (inode == str(status.st_ino) and device == mine)


def _exists(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def usual_wait(record: Record) -> float:
    """Seconds from one line of the log to the next; NaN where they are not known yet."""
    times = [
        row["train_seconds"]
        for row in record.rows
        if "samples_per_second" in row and isfinite(row.get("train_seconds", nan))
    ][-6:]
    waits = [later - earlier for earlier, later in pairwise(times)]
    return median(waits) if waits else nan


def life(
    record: Record, who: Holder | None, age: float, saved: Sequence[SavedStep]
) -> tuple[State, str]:
    """Whether a run goes on, and the same in words.

    Args:
        record: what it has logged.
        who: holds it, or held it last.
        age: seconds since the last line of the log, or since it began; NaN: not known.
        saved: its checkpoints.
    """
    wait = usual_wait(record)
    is_late = age > max(_LATE * wait, _LEAST_WAIT) if isfinite(wait) else age > 10 * _LEAST_WAIT
    silence = f"no line for {duration(age)}"
    if isfinite(wait):
        silence += f", one is due every {duration(max(wait, 1))}"
    done = bool(record.steps) and record.step >= record.steps
    if who is not None and who.holds:
        if done:
            return "running", f"finishing: {who}"
        return (
            ("silent", f"running, but {silence}: {who}")
            if is_late
            else ("running", f"running: {who}")
        )
    if done:
        return "finished", "finished"
    if who is not None and who.holds is False:
        again = "goes on from the newest checkpoint" if saved else "begins anew"
        return "stopped", f"not running any more ({who}); the same command {again}"
    where = f"{who}, not to be seen from here" if who else "its process is not known"
    if is_late:
        return "unknown", f"perhaps dead: {silence} ({where})"
    return "running", f"running, as its log tells ({where})"
