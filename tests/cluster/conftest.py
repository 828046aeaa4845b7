import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from held import LAUNCH
from launching import ENVIRONMENT
from tiny import write_config, write_shards

STEPS = 40


@pytest.fixture(scope="session")
def at_python() -> dict[str, str]:
    """The environment of programs that start ``python``, on CPUs."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin"
    return {**os.environ, **ENVIRONMENT, "PATH": path}


@pytest.fixture(scope="session")
def words(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], list[str]]:
    """The folder of a run to the words after ``pretrain``; all runs are alike."""
    folder = tmp_path_factory.mktemp("config")
    shards = write_shards(folder / "shards", "image")
    config = write_config(folder / "config.yaml", "image", shards, Path("unused"))
    return lambda run: [str(config), f"run_dir={run}", f"train.steps={STEPS}", "data.workers=1"]


@pytest.fixture(scope="session")
def uninterrupted(
    tmp_path_factory: pytest.TempPathFactory,
    words: Callable[[Path], list[str]],
    at_python: dict[str, str],
) -> Path:
    """A run of two processes on one host."""
    run = tmp_path_factory.mktemp("reference") / "reference"
    launcher = ["python", LAUNCH / "torchrun.py", "--standalone", "--nproc-per-node=2"]
    command = [*launcher, "-m", "selfdistill", "pretrain", *words(run)]
    ended = subprocess.run(command, env=at_python, capture_output=True, text=True, timeout=180)
    assert ended.returncode == 0, ended.stderr
    return run
