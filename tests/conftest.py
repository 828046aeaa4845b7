import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_runs import SmallRuns

from selfdistill.config import RunConfig
from selfdistill.config_file import build_config
from selfdistill.modalities.base import load_modality

# sums over another number of threads have other last digits; and tests run side by side
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)

MODEL = {"width": 16, "depth": 3, "heads": 4, "mlp_ratio": 2.0}
TINY: dict[str, dict[str, Any]] = {
    "audio": {
        "encoder": {
            "conv_layers": [[8, 10, 5], [8, 3, 2], [8, 2, 2]],
            "position_width": 10,
            "position_depth": 2,
            "position_groups": 4,
        },
        "mask": {"mask_length": 3},
        "objective": {"layer_norms": ["instance"]},
    },
    "image": {
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
    "text": {
        "encoder": {"vocab_size": 64},
        "input": {"max_tokens": 24},
        "objective": {"layer_norms": ["layer"], "loss_beta": 4.0, "head_layers": 2},
        "teacher": {"scope": "all"},
    },
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> SmallRuns:
    """Runs of three steps; each module has its own, for its tests may change them."""
    return SmallRuns(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def tiny_config() -> Callable[..., RunConfig]:
    """(modality, SECTION={key: value}...) to the config of a very small model."""

    def make(modality: str, **changes: Any) -> RunConfig:
        given: dict[str, Any] = {"modality": modality, "run_dir": "unused", "model": MODEL}
        given |= {"objective": {}}
        for source in (TINY.get(modality, {}), changes):
            for key, value in source.items():
                is_section = isinstance(value, dict)
                given[key] = {**given.get(key, {}), **value} if is_section else value
        given["objective"] = {"average_top_k_layers": 2, **given["objective"]}
        return build_config(given, load_modality)

    return make
