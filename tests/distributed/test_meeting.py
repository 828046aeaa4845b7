"""Processes of a run that do not all come."""

import os
import re
import time
from collections.abc import Callable
from pathlib import Path

from launching import TIMEOUT, Running, free_port

from selfdistill.engine import processes

Words = Callable[..., list[str]]


def come_alone() -> None:
    """As the first of two."""
    processes.TOO_LONG = 1.0
    os.environ |= {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}


def test_one_that_waits_for_the_other_says_so(words: Words, tmp_path: Path) -> None:
    run = Running(["pretrain", *words("image", tmp_path / "run")], tmp_path / "out", come_alone)
    try:
        end = time.monotonic() + TIMEOUT
        while not run.printed("stderr").endswith("\n") and time.monotonic() < end:
            time.sleep(0.1)
        (line,) = run.printed("stderr").splitlines()
    finally:
        run.clear()
    assert re.match(
        r"selfdistill: after 1 s process 0 still waits for all 2 processes of the run to meet at "
        r"127\.0\.0\.1:\d+; have all been started, ",
        line,
    )
