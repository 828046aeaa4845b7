"""The accuracies of a run over its training time, as its folder tells them."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from selfdistill.errors import UserError

# a run over several modalities puts the modality's name in front
_SCORE = re.compile(r"(?:(?P<modality>[^/]+)/)?eval/(?P<task>.+)/(?P<probe>[^/]+)")
# at any depth: the parts of a run over several modalities have them too
_NOT_COMPARED = {"run_dir", "seed", "resume"}

Place = tuple[str, str]
"""A modality, by its short name, and one of its tasks."""


@dataclass(frozen=True)
class Run:
    """What the folder of a run says about one probe.

    Attributes:
        path: as it was given.
        config: values by dotted key, but for those in which repeats of a run differ.
        scores: {place: {step: (seconds of training, accuracy from 0 to 1)}}, never empty.
        levels: {place: {name of a baseline: accuracy}}.
    """

    path: Path
    config: Mapping[str, Any]
    scores: Mapping[Place, Mapping[int, tuple[float, float]]]
    levels: Mapping[Place, Mapping[str, float]]


def read_run(path: Path, probe: str) -> Run:
    """Read ``config.yaml``, ``metrics.jsonl`` and, where there is one, ``eval.json``.

    Raises:
        UserError: the folder is no run, the run was not evaluated, or its time was not taken.
    """
    lines = _read(path, "metrics.jsonl").splitlines()
    config = yaml.safe_load(_read(path, "config.yaml"))
    scores: dict[Place, dict[int, tuple[float, float]]] = {}
    for row in _rows(lines):
        for key, value in row.items():
            found = _SCORE.fullmatch(key)
            if found is None or found["probe"] != probe:
                continue
            if row.get("train_seconds") is None:
                raise UserError(
                    f"{path}: metrics.jsonl has no train_seconds at step {row['step']}; "
                    "an older version trained it, train it again"
                )
            place = (_short(found["modality"] or config["modality"]), found["task"])
            scores.setdefault(place, {})[row["step"]] = (row["train_seconds"], value)
    if not scores:
        raise UserError(
            f"{path}: metrics.jsonl holds no evaluation; name labelled sets in eval.tasks, and see "
            "eval.every"
        )
    leaves = dict(_leaves(config, "", f"{config['run_dir']}/"))
    return Run(path, leaves, scores, _levels(path, scores, probe))


def _read(path: Path, name: str) -> str:
    try:
        return (path / name).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(
            f"{path}: cannot read {name} ({error.strerror}); give the folder of a run"
        ) from error


def _rows(lines: Iterable[str]) -> Iterable[dict[str, Any]]:
    for line in lines:
        try:
            yield json.loads(line)
        except ValueError:  # cut short by a crash, or being written
            continue


def _short(modality: str) -> str:
    return modality.rpartition(".")[2]


def _leaves(config: Mapping[str, Any], prefix: str, run_dir: str) -> Iterable[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.", run_dir)
        elif key not in _NOT_COMPARED:
            # a text run keeps its tokenizer in its folder
            yield prefix + key, value.removeprefix(run_dir) if isinstance(value, str) else value


def _levels(path: Path, places: Iterable[Place], probe: str) -> dict[Place, dict[str, float]]:
    if not (path / "eval.json").exists():
        return {}
    saved = json.loads(_read(path, "eval.json"))
    result = {_short(modality): found for modality, found in saved.items()}
    levels: dict[Place, dict[str, float]] = {}
    for modality, task in places:
        found = result.get(modality, {})
        table = found.get("tasks", {}).get(task, {}).get(probe, {})
        raw_input = found.get("raw_input")
        names = {
            "raw": f"raw input ({raw_input})" if raw_input else "raw input",
            "untrained": "untrained encoder",
        }
        levels[modality, task] = {
            name: table[source] for source, name in names.items() if table.get(source) is not None
        }
    return levels
