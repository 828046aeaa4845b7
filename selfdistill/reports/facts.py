"""Settings, hardware and speed of a run, as rows of text."""

import shlex
from collections.abc import Mapping
from math import isfinite, nan
from statistics import median
from typing import Any

from selfdistill.amounts import duration
from selfdistill.redaction import redacted
from selfdistill.run_folder.files import section
from selfdistill.run_folder.record import Record
from selfdistill.run_folder.scores import settings, written

_SHOWN = (
    "modality",
    "strategy",
    "init_from",
    "model.width",
    "model.depth",
    "model.heads",
    "objective.average_top_k_layers",
    "teacher.ema_decay",
    "teacher.ema_end_decay",
    "teacher.ema_anneal_end_step",
    "optim.lr",
    "optim.schedule",
    "optim.warmup_steps",
    "optim.clip_norm",
    "train.steps",
    "train.batch_size",
    "train.precision",
    "data.train",
    "data.batch_length",
    "seed",
)
_OFF: tuple[Any, ...] = ("", 0, None, [], {})


def important(record: Record) -> list[tuple[str, str]]:
    """The settings that say what kind of run it is; those that are off are left out."""
    found = settings(record, ignored=())
    rows = []
    for key in _SHOWN:
        names = [
            key,
            *(f"modalities.{name}.{key}" for name in section(record.config, "modalities")),
        ]
        rows += [(name, _shown(found[name])) for name in names if found.get(name) not in _OFF]
    return rows


def all_settings(record: Record) -> list[tuple[str, str]]:
    """Every setting by its dotted key."""
    return [(key, _shown(value)) for key, value in settings(record, ignored=()).items()]


def _shown(value: Any) -> str:
    # what newer versions write has no secrets in it
    return redacted(written(value))


def speed(record: Record) -> float:
    """The median of samples per second; NaN where none was logged."""
    known = [row["samples_per_second"] for row in record.rows if "samples_per_second" in row]
    known = [value for value in known if isfinite(value)]
    return median(known) if known else nan


def hardware(record: Record) -> list[tuple[str, str]]:
    """What it ran on and how fast; what is not known is left out."""
    environment = record.environment
    packages = section(environment, "packages")
    rows: list[tuple[str, Any]] = [
        ("device", environment.get("device")),
        ("platform", environment.get("platform")),
        ("versions", ", ".join(_versions(environment, packages))),
        ("commit", environment.get("git_commit")),
        ("command", _command(environment.get("command"))),
    ]
    if isfinite(record.seconds):
        rows.append(("training time, evaluations left out", duration(record.seconds)))
    if isfinite(speed(record)):
        rows.append(("samples per second, median", f"{speed(record):,.4g}"))
    waits = [row["data_wait"] for row in record.rows if isfinite(row.get("data_wait", nan))]
    if waits:
        share = sum(waits) / len(waits)
        rows.append(("waiting for data, mean", f"{100 * share:.1f} % of the time"))
    batch = section(record.config, "train").get("batch_size")
    by_length = any(section(p, "data").get("batch_length") for p in record.parts().values())
    if type(batch) is int and record.step and not by_length:
        rows.append(("samples seen", f"{batch * record.step:,}"))
    return [(name, str(value)) for name, value in rows if value]


def _versions(environment: Mapping[str, Any], packages: Mapping[str, Any]) -> list[str]:
    found = [f"Python {environment['python']}"] if environment.get("python") else []
    found += [f"{name} {packages[name]}" for name in ("selfdistill", "torch") if packages.get(name)]
    if environment.get("cuda") and environment.get("device") != "cpu":
        found.append(f"CUDA {environment['cuda']}")
    return found


def _command(words: Any) -> str:
    return redacted(shlex.join(map(str, words))) if isinstance(words, list) else ""


def kind(record: Record) -> str:
    """What kind of run it is, in a few words."""
    parts = {name: str(part.get("strategy", "")) for name, part in record.parts().items()}
    return "; ".join(
        f"{name}, {strategy}" if strategy else name for name, strategy in parts.items()
    )


def progress(record: Record) -> str:
    """How far it has come."""
    if record.steps and record.step < record.steps:
        return f"{record.step:,} of {record.steps:,} steps"
    return f"{record.step:,} steps"
