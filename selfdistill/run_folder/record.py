"""What the folder of a run tells, without the libraries that made it and without touching it."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import isfinite, nan
from pathlib import Path
from typing import Any

from selfdistill.config import short_name
from selfdistill.errors import UserError
from selfdistill.folders import as_text
from selfdistill.run_folder.files import (
    MetricsFile,
    Row,
    read_config,
    read_environment,
    read_result,
    section,
)
from selfdistill.run_folder.layout import CONFIG

# a run over several modalities puts the modality's name in front
_SCORE = re.compile(r"(?:(?P<modality>[^/]+)/)?eval/(?P<task>.+)/(?P<probe>[^/]+)")


@dataclass(frozen=True)
class Log:
    """The figures of one modality, and those of its run, over the steps.

    Attributes:
        steps: of the lines.
        values: by name, as long as ``steps``; NaN where a line has none.
    """

    steps: Sequence[int]
    values: Mapping[str, Sequence[float]]

    def last(self, key: str) -> float:
        """The value of the last line; NaN where there is none."""
        values = self.values.get(key, ())
        return values[-1] if values else nan


@dataclass(frozen=True)
class Record:
    """What is known of a run.

    Attributes:
        path: as it was given.
        config: as in ``config.yaml``.
        environment: as in ``environment.json``; empty where there is none.
        rows: of ``metrics.jsonl``, in the order of the steps.
        result: the last evaluation, by the modality's short name; empty where there is none.
    """

    path: Path
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    rows: Sequence[Row]
    result: Mapping[str, Any]

    @property
    def name(self) -> str:
        return as_text(self.path.resolve().name) or as_text(self.path)

    def parts(self) -> dict[str, Mapping[str, Any]]:
        """The config of each modality, by its short name."""
        several = section(self.config, "modalities")
        if not several:
            return {short_name(str(self.config.get("modality", "unset"))): self.config}
        return {short_name(name): {**self.config, **section(several, name)} for name in several}

    @property
    def steps(self) -> int:
        """Of the whole run, as its config has them; 0: not known."""
        found = section(self.config, "train").get("steps")
        return found if isinstance(found, int) else 0

    @property
    def step(self) -> int:
        """The last one that was logged; 0: none was."""
        return int(self.rows[-1]["step"]) if self.rows else 0

    @property
    def seconds(self) -> float:
        """Of training; NaN where it was not taken."""
        known = (row["train_seconds"] for row in reversed(self.rows) if "train_seconds" in row)
        return next(known, nan)

    def logs(self) -> dict[str, Log]:
        """The figures by modality; of a run over several also "", what concerns all of them."""
        names = list(self.parts())
        whole = names[0] if len(names) == 1 else ""
        rows = [row for row in self.rows if any(map(_is_figure, row))]
        steps = [int(row["step"]) for row in rows]
        found: dict[str, dict[str, list[float]]] = {name: {} for name in [*names, whole]}
        for number, row in enumerate(rows):
            for key, value in row.items():
                if not _is_figure(key):
                    continue
                modality, _, own = key.partition("/")
                if not own or modality not in names:
                    modality, own = whole, key
                figures = found[modality]
                if own not in figures:
                    figures[own] = [nan] * len(rows)
                figures[own][number] = value
        return {name: Log(steps, values) for name, values in found.items()}

    def scores(self, modality: str) -> dict[tuple[str, str], dict[int, float]]:
        """Accuracies from 0 to 1 by (task, probe) and step."""
        found: dict[tuple[str, str], dict[int, float]] = {}
        for whose, task, probe, row, value in self.evaluations():
            if whose == modality:
                found.setdefault((task, probe), {})[int(row["step"])] = value
        return found

    def evaluations(self) -> Iterator[tuple[str, str, str, Row, float]]:
        """Modality, task, probe, line and accuracy of all that was evaluated."""
        for row in self.rows:
            for key, value in row.items():
                found = _score(key)
                if found is not None and isfinite(value):
                    given = found["modality"] or self.config.get("modality", "unset")
                    yield short_name(str(given)), found["task"], found["probe"], row, value

    def tasks(self, modality: str) -> dict[str, Mapping[str, Any]]:
        """The tables of the last evaluation by task; the first one is the headline."""
        found = section(self.result, modality)
        tasks = section(found, "tasks")
        if tasks or not found:
            return {name: table for name, table in tasks.items() if isinstance(table, Mapping)}
        return {str(found.get("task", "probes")): found}  # as older versions had it


def check_named_once(paths: Sequence[Path]) -> None:
    """Raises ``UserError`` where two paths are the same folder."""
    resolved = [path.resolve() for path in paths]
    for path in resolved:
        if resolved.count(path) > 1:
            raise UserError(f"{path}: is named twice; name each run once")


def _is_figure(key: str) -> bool:
    return key not in ("step", "train_seconds") and _score(key) is None


@cache  # all lines of a log have the same few keys
def _score(key: str) -> re.Match[str] | None:
    return _SCORE.fullmatch(key)


def read_record(path: Path) -> Record:
    """Read ``config.yaml``, ``metrics.jsonl`` and, where they are, the files of JSON.

    Raises:
        UserError: the folder is no run, has logged nothing yet, or a file in it is damaged.
    """
    metrics = MetricsFile(path)
    rows = metrics.read()
    if not metrics.exists:
        raise UserError(f"{path}: {_why_no_metrics(path)}")
    return Record(path, read_config(path), read_environment(path), rows, read_result(path))


def _why_no_metrics(path: Path) -> str:
    if not path.exists():
        return "there is no such folder; give the folder of a run"
    if not path.is_dir():
        return "is no folder; give the folder of a run"
    if (path / CONFIG).exists():
        return "has no metrics.jsonl: nothing was logged yet (see log.every)"
    return "cannot read metrics.jsonl (No such file or directory); give the folder of a run"
