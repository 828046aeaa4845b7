"""Folders as runs leave them, made up for tests of what reads them."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

GUARD = {"after_steps": 50, "min_relative_std": 0.3, "patience": 3}
STEPS = 200


def config(modality: str = "image", **changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "modality": modality,
        "run_dir": "runs/made-up",
        "strategy": "dense",
        "seed": 0,
        "model": {"width": 16, "depth": 2},
        "guard": dict(GUARD),
        "optim": {"lr": 0.002},
        "train": {"steps": STEPS, "batch_size": 8},
        "data": {"train": ["shards/a.tar"], "max_bad_share": 0.05},
        "log": {"every": 10},
    }
    for key, value in changes.items():
        found[key] = {**found[key], **value} if isinstance(value, dict) and key in found else value
    return found


def row(step: int, **changes: float | None) -> dict[str, Any]:
    return {
        "step": step,
        "loss": 3.0 - step / 200,
        "masked_share": 0.375,
        "target_std": 0.9,
        "prediction_std": 0.6,
        "target_rank": 40.0,
        "grad_norm": 1.5,
        "data_wait": 0.02,
        "teacher_distance": 0.05,
        "lr": 0.001,
        "ema_decay": 0.99,
        "samples_per_second": 80.0,
        "train_seconds": step / 10,
        "bad_samples": 0.0,
        "left_out_steps": 0.0,
        **changes,
    }


def rows(change: Callable[[int], Mapping[str, float | None]] = lambda step: {}) -> list[Any]:
    return [row(step, **change(step)) for step in range(10, STEPS + 1, 10)]


def evaluation(step: int, linear: float, task: str = "letter") -> dict[str, Any]:
    values = {"linear": linear, "few_shot": linear / 2, "knn": linear / 4}
    scores = {f"eval/{task}/{probe}": value for probe, value in values.items()}
    return {"step": step, "train_seconds": step / 10, **scores}


def result(
    trained: float = 0.42, untrained: float = 0.12, modality: str = "image", **more: Any
) -> dict[str, Any]:
    def table(factor: float) -> dict[str, Any]:
        return {
            "raw": 0.36 * factor,
            "untrained": untrained * factor,
            "trained": trained * factor,
            "layer": 3,
            "standard_error": {"raw": 0.01, "untrained": 0.01, "trained": 0.01},
        }

    tables = {"linear": table(1), "few_shot": table(0.5), "knn": table(0.25)}
    task = {**tables, "classes": 26, "train_samples": 52, "test_samples": 52, **more}
    return {modality: {**tables, "raw_input": "pixels", "tasks": {"letter": task}}}


def write_run(
    path: Path,
    lines: Sequence[Mapping[str, Any]] | None = None,
    found: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """A run's folder; ``found`` is what eval.json has."""
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(yaml.safe_dump(dict(settings or config())))
    lines = rows() if lines is None else lines
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if found is not None:
        (path / "eval.json").write_text(json.dumps(found))
    environment = {
        "packages": {"selfdistill": "0.1.0", "torch": "2.15.0"},
        "python": "3.11.7",
        "platform": "Linux-6",
        "device": "8 x MadeUp GPU",
        "cuda": "13.2",
        "command": ["selfdistill", "pretrain", "configs/made up.yaml"],
        "git_commit": "0123abcd",
    }
    (path / "environment.json").write_text(json.dumps(environment))
    return path
