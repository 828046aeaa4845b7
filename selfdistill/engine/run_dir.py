"""The folder of a run: who may write to it, and what lies where."""

import fcntl
import json
import logging
import os
import platform
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

import torch

from selfdistill.durable import write_atomically
from selfdistill.errors import SelfdistillError, UserError
from selfdistill.redaction import all_redacted
from selfdistill.run_folder.layout import (
    CHECKPOINTS,
    CONFIG,
    ENVIRONMENT,
    EVALUATION,
    LEFT_OUT,
    LOCK,
    METRICS,
    TENSORBOARD,
)
from selfdistill.versions import versions

logger = logging.getLogger(__name__)

LOCK_SECONDS = 10.0
"""A server of files may take so long to notice that the node of a run has died."""


class RunDir:
    """The folder of one run, held by this process until ``close``; a context manager.

    Only the main process of a run makes one.

    Args:
        path: created, with its parents, if it is not there.

    Raises:
        UserError: the folder cannot be written, or another run holds it.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._lock: int | None = None
        self._holder = f"process {os.getpid()} on host {socket.gethostname()}\n"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe = self.path / ".writable"
            probe.touch()
            probe.unlink(missing_ok=True)  # a run that begins at the same moment makes one, too
            self._lock = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
            self._hold(self._lock)
        except OSError as error:
            self.close()
            raise UserError(
                f"run_dir: cannot write to '{self.path}' ({error.strerror}); "
                "choose a folder that you may write to"
            ) from error
        # a loader's worker outlives a killed run for seconds and must not hold its lock so long
        os.register_at_fork(after_in_child=self.close)

    def _hold(self, lock: int) -> None:
        end, waits = time.monotonic() + LOCK_SECONDS, False
        while not _is_locked(lock, self.path):
            holder = os.pread(lock, 1000, 0).decode(errors="replace").strip()
            used = f"'{self.path}' is in use by {holder or 'another process'}"
            if time.monotonic() >= end:
                self.close()
                raise UserError(f"run_dir: {used}; stop that run or choose another folder")
            if not waits:
                logger.warning("%s; it is tried again for %g s", used, LOCK_SECONDS)
            waits = True
            time.sleep(0.1)
        os.ftruncate(lock, 0)
        os.pwrite(lock, self._holder.encode(), 0)

    def check(self) -> None:
        """
        Raises:
            SelfdistillError: at the path there is no folder any more, or that of another run.
        """
        try:
            holder = (self.path / LOCK).read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            if self.path.exists():  # somebody took the lock for a stale one
                return
            holder = ""
        except OSError:  # whoever writes to it will tell
            return
        if holder != self._holder:
            raise SelfdistillError(
                f"run_dir: '{self.path}' was moved or removed while the run wrote to it"
                + (f", and is now of {holder.strip()}" if holder else "")
                + "; move it back and run the same command again to go on from its last checkpoint"
            )

    def close(self) -> None:
        """Let another run have the folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def checkpoints(self) -> Path:
        return self.path / CHECKPOINTS

    @property
    def config_path(self) -> Path:
        return self.path / CONFIG

    @property
    def metrics_path(self) -> Path:
        return self.path / METRICS

    @property
    def left_out_path(self) -> Path:
        return self.path / LEFT_OUT

    @property
    def eval_path(self) -> Path:
        return self.path / EVALUATION

    @property
    def tensorboard(self) -> Path:
        return self.path / TENSORBOARD

    def save_config(self, yaml_text: str) -> None:
        """Write ``config.yaml``, the resolved config."""
        write_atomically(self.config_path, yaml_text)

    def save_environment(self, seed: int) -> None:
        """Write ``environment.json``: what one needs to know to repeat the run.

        Environment variables are left out, because they hold secrets.
        """
        found = {
            "packages": versions(),
            "python": platform.python_version(),
            "platform": platform.platform(),
            "device": _device(),
            "cuda": torch.version.cuda,
            "command": all_redacted(sys.argv),
            "seed": seed,
            "git_commit": _git_commit(),
        }
        write_atomically(self.path / ENVIRONMENT, json.dumps(found, indent=2) + "\n")


def _is_locked(lock: int, path: Path) -> bool:
    """Whether this process has the lock, as far as the file system has any; asks for it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        logger.warning(
            "%s cannot be locked (%s); see to it that no second run uses it", path, error.strerror
        )
    return True


def _device() -> str:
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return "cpu"


def _git_commit() -> str | None:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
