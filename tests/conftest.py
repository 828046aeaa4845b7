import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from modality_cases import MODALITY_CASES
from small_runs import SmallRuns

from selfdistill.config import RunConfig
from selfdistill.config_files.load import build_config, load_config
from selfdistill.modalities.base import load_modality

# sums over another number of threads have other last digits; and tests run side by side
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)
# a shell lets what it starts in the background ignore Ctrl-C, and so would all that is started here
signal.signal(signal.SIGINT, signal.default_int_handler)

MODEL = {"width": 16, "depth": 3, "heads": 4, "mlp_ratio": 2.0}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> SmallRuns:
    """Runs of three steps; each module has its own, for its tests may change them."""
    return SmallRuns(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., RunConfig]:
    """(YAML text, overrides) to a config."""

    def load(text: str, *overrides: str) -> RunConfig:
        path = tmp_path / "config.yaml"
        path.write_text(text, encoding="utf-8")
        return load_config(path, overrides, load_modality)

    return load


@pytest.fixture
def tiny_config() -> Callable[..., RunConfig]:
    """(modality, SECTION={key: value}...) to the config of a very small model."""

    def make(modality: str, **changes: Any) -> RunConfig:
        given: dict[str, Any] = {"modality": modality, "run_dir": "unused", "model": MODEL}
        given |= {"objective": {}}
        case = MODALITY_CASES.get(modality)
        for source in (case.tiny if case else {}, changes):
            for key, value in source.items():
                is_section = isinstance(value, dict)
                given[key] = {**given.get(key, {}), **value} if is_section else value
        given["objective"] = {"average_top_k_layers": 2, **given["objective"]}
        return build_config(given, load_modality)

    return make
