"""Tiny shards and configs of every modality, with every kind of chance switched on."""

import io
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import webdataset
import yaml
from PIL import Image

MODALITIES = ("audio", "image", "text")
JOINT = "joint"
"""A run over all of them."""
STEPS = 60
SAMPLES = 48
RATE = 4000
Sample = dict[str, bytes]


def audio(rng: np.random.Generator, label: int, seconds: float | None = None) -> Sample:
    """A tone in noise; its pitch tells the label."""
    seconds = rng.uniform(0.1, 0.25) if seconds is None else seconds
    time = np.arange(int(seconds * RATE)) / RATE
    tone = np.sin(2 * np.pi * (300 + 500 * label) * time) + 0.3 * rng.normal(size=len(time))
    out = io.BytesIO()
    soundfile.write(out, (0.2 * tone).astype(np.float32), RATE, format="WAV")
    return {"wav": out.getvalue()}


def image(rng: np.random.Generator, label: int) -> Sample:
    """Noise, darker for one label."""
    pixels = rng.integers(100 * label, 100 * label + 150, (18, 18, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return {"png": out.getvalue()}


def text(rng: np.random.Generator, label: int) -> Sample:
    """Made-up words; half of the dictionary belongs to a label."""
    words = np.array(["bala", "kodi", "mune", "sepa", "tufo", "gire", "lano", "vidu"])
    chosen = rng.choice(words[4 * label : 4 * label + 6], rng.integers(5, 20))
    return {"txt": " ".join(chosen).encode()}


SAMPLE: dict[str, Callable[..., Sample]] = {"audio": audio, "image": image, "text": text}


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
        sample = SAMPLE[modality](rng, label)
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
OWN: dict[str, dict[str, Any]] = {
    "audio": {
        "encoder": {
            "conv_layers": [[16, 10, 5], [16, 4, 4]],
            "position_width": 9,
            "position_depth": 2,
            "position_groups": 2,
            "input_dropout": 0.1,
        },
        "mask": {"mask_length": 3},
        "input": {"sampling_rate": RATE, "max_seconds": 0.2},
    },
    "image": {
        "encoder": {"patch_size": 4},
        "mask": {"num_patches": 8, "min_block": 2},
        "input": {"size": [16, 16]},
        "model": {"norm_order": "pre", "layer_scale": 0.1, "key_bias": False},
        "teacher": {"scope": "all"},
    },
    "text": {
        "encoder": {"vocab_size": 32},
        "mask": {"mask_length": 2},
        "input": {"max_tokens": 24},
        "model": {"layer_drop": 0.2},
        "teacher": {"scope": "all"},
    },
}


def write_config(path: Path, modality: str, train: list[str], run_dir: Path) -> Path:
    content = {**COMMON, "modality": modality, "run_dir": str(run_dir)}
    for section, values in OWN[modality].items():
        content[section] = content.get(section, {}) | values
    content["data"] = COMMON["data"] | {"train": train}
    return _write(path, content)


def write_joint_config(path: Path, train: dict[str, list[str]], run_dir: Path) -> Path:
    """Of a run over several modalities; ``train`` has the shards of each."""
    content = {**COMMON, "run_dir": str(run_dir), "strategy": "visible", "decoder": DECODER}
    content["train"] = COMMON["train"] | {"batch_size": 12}
    content["model"] = COMMON["model"] | {"layer_drop": 0.2}
    content["modalities"] = {
        modality: {key: value for key, value in OWN[modality].items() if key != "model"}
        | {"data": {"train": shards}}
        for modality, shards in train.items()
    }
    return _write(path, content)


def _write(path: Path, content: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    return path
