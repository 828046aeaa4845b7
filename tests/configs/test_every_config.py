"""All files under configs/: they load, fit together, and can be built."""

from pathlib import Path

import pytest
import torch
from recipe_files import FILES, load
from torch import nn

from selfdistill.config_files.load import dump_config, load_config
from selfdistill.engine.optim import build_scheduler
from selfdistill.modalities.base import load_modality
from selfdistill.objective.data2vec import Data2Vec


@pytest.mark.parametrize("file", FILES)
def test_loads_and_survives_being_saved(file: str, tmp_path: Path) -> None:
    config = load(file)
    assert (config.modality or "joint") == Path(file).parent.name
    saved = tmp_path / "config.yaml"
    saved.write_text(dump_config(config), encoding="utf-8")
    assert load_config(saved, [], load_modality) == config


@pytest.mark.parametrize("file", FILES)
def test_learning_rate_fits_the_run(file: str) -> None:
    config = load(file)
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=config.optim.lr)
    build_scheduler(optimizer, config.optim, config.train.steps)


def test_run_folders_differ() -> None:
    assert len({load(file).run_dir for file in FILES}) == len(FILES)


@pytest.mark.parametrize("file", [file for file in FILES if not file.endswith("sample.yaml")])
def test_recipe_is_built_without_memory(file: str) -> None:
    with torch.device("meta"):
        model = Data2Vec(load(file))
    tensors = [*model.parameters(), *model.buffers()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}
