"""The accuracies of a run over its training time, and in which settings runs differ."""

import json
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan
from pathlib import Path
from statistics import mean
from typing import Any

from selfdistill.config import dotted
from selfdistill.errors import UserError
from selfdistill.run_folder.files import section
from selfdistill.run_folder.record import Record, read_record

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
    """Read what a folder tells of one probe.

    Raises:
        UserError: the folder is no run, the run was not evaluated, or its time was not taken.
    """
    record = read_record(path)
    scores: dict[Place, dict[int, tuple[float, float]]] = {}
    for modality, task, its_probe, row, value in record.evaluations():
        if its_probe != probe:
            continue
        step = int(row["step"])
        if not isfinite(row.get("train_seconds", nan)):
            raise UserError(
                f"{path}: metrics.jsonl has no train_seconds at step {step}; "
                "an older version trained it, train it again"
            )
        scores.setdefault((modality, task), {})[step] = (row["train_seconds"], value)
    if not scores:
        raise UserError(
            f"{path}: metrics.jsonl holds no evaluation; name labelled sets in eval.tasks, and see "
            "eval.every"
        )
    found = {place: levels(record, place[0], place[1], probe) for place in scores}
    return Run(path, settings(record), scores, found)


def settings(record: Record, ignored: Container[str] = _NOT_COMPARED) -> dict[str, Any]:
    """Values by dotted key, but for the keys to be ignored, at whatever depth."""
    run_dir = f"{Path(str(record.config.get('run_dir', '')))}/"
    return {
        # a text run keeps its tokenizer in its folder
        key: value.removeprefix(run_dir) if isinstance(value, str) else value
        for key, value in dotted(record.config)
        if key.rpartition(".")[2] not in ignored
    }


def differing(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """The values, one for each config, of the keys that are not the same in all of them."""
    keys = dict.fromkeys(key for config in configs for key in config)
    values = {key: [written(config.get(key, "unset")) for config in configs] for key in keys}
    return {key: words for key, words in values.items() if len(set(words)) > 1}


def written(value: Any) -> str:
    """A setting as text."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def levels(record: Record, modality: str, task: str, probe: str) -> dict[str, float]:
    """Accuracies of the baselines by their names, as the last evaluation has them."""
    table = section(record.tasks(modality).get(task, {}), probe)
    raw_input = section(record.result, modality).get("raw_input")
    names = {
        "raw": f"raw input ({raw_input})" if raw_input else "raw input",
        "untrained": "untrained encoder",
    }
    return {name: table[source] for source, name in names.items() if table.get(source) is not None}


def levels_of_several(found: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The mean of the baselines of several runs; where they differ, the name tells how far."""
    values: dict[str, list[float]] = {}
    for own in found:
        for name, level in own.items():
            values.setdefault(name, []).append(level)
    return {_spread(name, of_runs): mean(of_runs) for name, of_runs in values.items()}


def _spread(name: str, values: Sequence[float]) -> str:
    low, high = (f"{100 * value:.1f}" for value in (min(values), max(values)))
    return name if low == high else f"{name}, mean of {low} to {high} %"
