"""Noise, darker for one label."""

import io
from typing import Any

import numpy as np
import torch
from PIL import Image

from modality_cases import ModalityCase, Sample


def sample(rng: np.random.Generator, label: int) -> Sample:
    pixels = rng.integers(100 * label, 100 * label + 150, (18, 18, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return {"png": out.getvalue()}


SIDE = 32
SQUARE = {"size": [SIDE, SIDE]}


def square(**sections: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {"input": SQUARE, **sections}


CASE = ModalityCase(
    sample=sample,
    run={
        "encoder": {"patch_size": 4},
        "mask": {"num_patches": 8, "min_block": 2},
        "input": {"size": [16, 16]},
        "model": {"norm_order": "pre", "layer_scale": 0.1, "key_bias": False},
        "teacher": {"scope": "all"},
    },
    tiny={
        "encoder": {"patch_size": 8},
        "mask": {"num_patches": 4, "min_block": 1},
        "input": {"size": [24, 32]},
        "model": {
            "norm_order": "pre",
            "key_bias": False,
            "layer_scale": 0.1,
            "initializer": "beit",
        },
        "objective": {"target_from": "block", "layer_norms": ["layer"], "target_norms": ["layer"]},
        "teacher": {"scope": "all"},
    },
    encoders={
        "relative": square(),
        "relative without a class token": square(encoder={"num_extra_tokens": 0}),
        "block_relative": square(encoder={"positions": "block_relative"}),
        "learned": square(encoder={"positions": "learned", "context_norm": True}),
        "learned with two class tokens": square(
            encoder={"positions": "learned", "num_extra_tokens": 2}
        ),
        "sincos": square(encoder={"positions": "sincos", "context_norm": True}),
        "sincos and post-norm": square(
            encoder={"positions": "sincos"},
            model={"norm_order": "post", "layer_scale": 0.0, "key_bias": True},
        ),
    },
    inputs=lambda generator: torch.randn(3, 3, SIDE, SIDE, generator=generator),
    tokens=[16, 16, 16],
)
