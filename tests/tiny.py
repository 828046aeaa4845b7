"""Tiny shards and configs of every modality, with every kind of chance switched on."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import webdataset
import yaml
from modality_cases import MODALITY_CASES, Sample

JOINT = "joint"
"""A run over all of them."""
STEPS = 60
SAMPLES = 48


def write_shard(path: Path, samples: Iterable[Sample]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(path), encoder=False) as tar:
        for number, sample in enumerate(samples):
            tar.write({"__key__": f"s{number:04d}", **sample})
    return path


def samples(modality: str, count: int, seed: int = 0, labelled: bool = False) -> list[Sample]:
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        label = number % 2
        sample = MODALITY_CASES[modality].sample(rng, label)
        made.append(sample | ({"cls": str(label).encode()} if labelled else {}))
    return made


def write_shards(folder: Path, modality: str) -> list[str]:
    """Two shards for training, and their paths."""
    parts = (samples(modality, SAMPLES // 2, seed) for seed in (1, 2))
    return [str(write_shard(folder / f"{i}.tar", part)) for i, part in enumerate(parts)]


def write_task(folder: Path, modality: str, labelled: bool = True) -> dict[str, list[str]]:
    """A labelled set for the probes."""
    return {
        split: [str(write_shard(folder / f"{split}.tar", samples(modality, n, n, labelled)))]
        for split, n in (("train", 24), ("test", 16))
    }


COMMON: dict[str, Any] = {
    "seed": 3,
    "model": {
        "width": 16,
        "depth": 2,
        "heads": 2,
        "dropout": 0.1,
        "attention_dropout": 0.1,
        "activation_dropout": 0.1,
        "drop_path": 0.1,
    },
    "objective": {"average_top_k_layers": 2, "layer_norms": ["layer"]},
    "teacher": {"ema_decay": 0.9, "ema_end_decay": 0.99, "ema_anneal_end_step": 40},
    "optim": {"lr": 2e-3, "warmup_steps": 5, "clip_norm": 1.0},
    "train": {"steps": STEPS, "batch_size": 8},
    "data": {"workers": 0},
    "checkpoint": {"every": 7, "keep": 3},
    "log": {"every": 1, "tensorboard": False},
    "eval": {"few_shot_labels": 2, "few_shot_draws": 2, "pictures": False},
}
DECODER = {"width": 8, "layers": 2, "kernel": 3, "groups": 2}


def write_config(path: Path, modality: str, train: list[str], run_dir: Path) -> Path:
    content = {**COMMON, "modality": modality, "run_dir": str(run_dir)}
    for section, values in MODALITY_CASES[modality].run.items():
        content[section] = content.get(section, {}) | values
    content["data"] = COMMON["data"] | {"train": train}
    return _write(path, content)


def write_joint_config(path: Path, train: dict[str, list[str]], run_dir: Path) -> Path:
    """Of a run over several modalities; ``train`` has the shards of each."""
    content = {**COMMON, "run_dir": str(run_dir), "strategy": "visible", "decoder": DECODER}
    content["train"] = COMMON["train"] | {"batch_size": 12}
    content["model"] = COMMON["model"] | {"layer_drop": 0.2}
    own = {modality: dict(MODALITY_CASES[modality].run) for modality in train}
    for sections in own.values():
        sections.pop("model", None)  # which they share
    content["modalities"] = {
        modality: own[modality] | {"data": {"train": shards}} for modality, shards in train.items()
    }
    return _write(path, content)


def _write(path: Path, content: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    return path
