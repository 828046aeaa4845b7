"""Whether the processes of a run find each other."""

import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from launching import TIMEOUT, Running, free_port
from worlds import Job, train

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


def forget_the_device() -> None:
    del os.environ["ACCELERATE_USE_CPU"]


@pytest.mark.skipif(torch.accelerator.is_available(), reason="they would meet there")
def test_nobody_has_to_say_that_they_are_on_cpus(words: Words, tmp_path: Path) -> None:
    """Each would train alone, to the same folder."""
    words_of_it = words("image", tmp_path / "run", "train.steps=2", "optim.warmup_steps=1")
    train(2, [Job(words_of_it, setup=forget_the_device)], tmp_path / "out")
    assert (tmp_path / "out/1").read_text() == ""  # only the main one speaks
