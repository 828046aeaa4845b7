"""Reads the files of a run's folder, also while the run writes them; never touches any of them."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from selfdistill.config import short_name
from selfdistill.errors import UserError
from selfdistill.run_folder.layout import (
    CHECKPOINT,
    CHECKPOINTS,
    CONFIG,
    ENVIRONMENT,
    EVALUATION,
    MANIFEST,
    METRICS,
)

Row = dict[str, float]
"""A line of metrics.jsonl: its numbers by name, "step" among them; NaN for null."""

AGAIN = "; it is written anew when the run goes on"


class MetricsFile:
    """``metrics.jsonl``, also while it is being written: each ``read`` takes what is new.

    Args:
        path: of the run.

    Attributes:
        exists: whether the last ``read`` found the file.
        changed: seconds since the epoch when the file was last written, as its host has them.
    """

    def __init__(self, path: Path) -> None:
        self.exists = False
        self.changed = nan
        self._path = path / METRICS
        self._rows: list[Row] = []
        self._place = 0
        self._file: tuple[int, int] | None = None

    def read(self) -> list[Row]:
        """All rows so far.

        The last line counts when it is complete. A run that went back writes an earlier step
        again, or another file under the name: rows of later steps are then dropped.

        Raises:
            UserError: the file is there and cannot be read.
        """
        try:
            with open(self._path, "rb") as file:
                self._take(file)
        except (FileNotFoundError, NotADirectoryError):
            self._forget()
            self.exists = False
        except OSError as error:
            raise UserError(f"cannot read {self._path}: {error.strerror}") from error
        return list(self._rows)

    def _forget(self) -> None:
        self._rows, self._place, self._file = [], 0, None

    def _take(self, file: BinaryIO) -> None:
        status = os.fstat(file.fileno())
        identity = (status.st_dev, status.st_ino)
        if identity != self._file or status.st_size < self._place:
            self._forget()
        self._file, self.exists, self.changed = identity, True, status.st_mtime
        file.seek(self._place)
        complete, newline, _ = file.read().rpartition(b"\n")
        self._place += len(complete) + len(newline)
        for row in _rows(complete.decode(errors="replace").splitlines()):
            while self._rows and _is_before(row, self._rows[-1]):
                self._rows.pop()
            self._rows.append(row)


def _is_before(row: Row, last: Row) -> bool:
    # a step has one line of figures and one of its evaluation
    shared = (row.keys() & last.keys()) - {"step", "train_seconds"}
    return last["step"] > row["step"] or (last["step"] == row["step"] and bool(shared))


def _rows(lines: Iterable[str]) -> Iterator[Row]:
    for line in lines:
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):  # cut short by a crash
            continue
        if not isinstance(found, dict) or type(found.get("step")) is not int:
            continue
        yield {
            key: nan if value is None else value
            for key, value in found.items()
            if value is None or type(value) in (int, float)
        }


def read_config(path: Path) -> dict[str, Any]:
    """``config.yaml``.

    Raises:
        UserError: it is not there, or is damaged.
    """
    try:
        found = yaml.load(_text(path / CONFIG), _Loader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path / CONFIG} is damaged: {reason}{AGAIN}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path / CONFIG} is damaged: it has no keys{AGAIN}")
    return found


# the same documents as safe_load, tens of times as fast where libyaml is there
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_environment(path: Path) -> dict[str, Any]:
    """``environment.json``; empty where there is none.

    Raises:
        UserError: it is damaged.
    """
    return _json(path / ENVIRONMENT)


def read_result(path: Path) -> dict[str, Any]:
    """``eval.json`` by the modality's short name; empty where there is none.

    Raises:
        UserError: it is damaged.
    """
    return {short_name(name): found for name, found in _json(path / EVALUATION).items()}


def _json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        found = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {error}{AGAIN}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} is damaged: it has no keys{AGAIN}")
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(
            f"{path.parent}: cannot read {path.name} ({error.strerror}); give the folder of a run"
        ) from error


@dataclass(frozen=True)
class SavedStep:
    """A complete checkpoint; ``changed`` as that of ``MetricsFile``."""

    name: str
    step: int
    changed: float


# Checkpointer.complete finds them, too; with it would come torch and its seconds
def checkpoints(path: Path) -> list[SavedStep]:
    """The complete checkpoints of a run, by step; those that are being written are left out."""
    found = []
    for folder in (path / CHECKPOINTS).glob("step-*"):
        named = CHECKPOINT.fullmatch(folder.name)
        try:
            changed = (folder / MANIFEST).stat().st_mtime
        except OSError:
            continue
        if named is not None:
            found.append(SavedStep(folder.name, int(named[1]), changed))
    return sorted(found, key=lambda saved: saved.step)


def section(config: Any, key: str) -> Mapping[str, Any]:
    """A mapping inside another one; empty where there is none, as older versions have it."""
    found = config.get(key) if isinstance(config, Mapping) else None
    return found if isinstance(found, Mapping) else {}
