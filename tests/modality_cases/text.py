"""Made-up words; half of the dictionary belongs to a label."""

import numpy as np
import torch

from modality_cases import ModalityCase, Sample


def sample(rng: np.random.Generator, label: int) -> Sample:
    words = np.array(["bala", "kodi", "mune", "sepa", "tufo", "gire", "lano", "vidu"])
    chosen = rng.choice(words[4 * label : 4 * label + 6], rng.integers(5, 20))
    return {"txt": " ".join(chosen).encode()}


LENGTHS = [11, 7, 4]
CASE = ModalityCase(
    sample=sample,
    run={
        "encoder": {"vocab_size": 32},
        "mask": {"mask_length": 2},
        "input": {"max_tokens": 24},
        "model": {"layer_drop": 0.2},
        "teacher": {"scope": "all"},
    },
    tiny={
        "encoder": {"vocab_size": 64},
        "input": {"max_tokens": 24},
        "objective": {"layer_norms": ["layer"], "loss_beta": 4.0, "head_layers": 2},
        "teacher": {"scope": "all"},
    },
    encoders={"": {}, "two norms": {"encoder": {"context_norm": True}}},
    inputs=lambda generator: torch.randint(5, 64, (3, LENGTHS[0]), generator=generator),
    tokens=LENGTHS,
    lengths=LENGTHS,
    padding=1,
    has_mask_token=False,
)
