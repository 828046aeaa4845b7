"""A tone in noise; its pitch tells the label."""

import io

import numpy as np
import soundfile
import torch

from modality_cases import ModalityCase, Sample

RATE = 4000


def sample(rng: np.random.Generator, label: int, seconds: float | None = None) -> Sample:
    seconds = rng.uniform(0.1, 0.25) if seconds is None else seconds
    time = np.arange(int(seconds * RATE)) / RATE
    tone = np.sin(2 * np.pi * (300 + 500 * label) * time) + 0.3 * rng.normal(size=len(time))
    out = io.BytesIO()
    soundfile.write(out, (0.2 * tone).astype(np.float32), RATE, format="WAV")
    return {"wav": out.getvalue()}


LENGTHS = [205, 150, 92]
CASE = ModalityCase(
    sample=sample,
    run={
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
    tiny={
        "encoder": {
            "conv_layers": [[8, 10, 5], [8, 3, 2], [8, 2, 2]],
            "position_width": 10,
            "position_depth": 2,
            "position_groups": 4,
        },
        "mask": {"mask_length": 3},
        "objective": {"layer_norms": ["instance"]},
    },
    encoders={
        "": {},
        "alibi": {"encoder": {"alibi": True}},
        "alibi of one scale": {"encoder": {"alibi": True, "alibi_per_head": False}},
        "alibi per layer": {"encoder": {"alibi": True, "alibi_per_layer": True}},
        "even kernels": {"encoder": {"position_width": 8}},
    },
    inputs=lambda generator: torch.randn(3, LENGTHS[0], generator=generator),
    tokens=[9, 7, 4],
    lengths=LENGTHS,
)
