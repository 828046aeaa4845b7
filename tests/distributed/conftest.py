from collections.abc import Callable
from pathlib import Path

import pytest
from modality_cases import MODALITIES
from tiny import JOINT, write_config, write_joint_config, write_shards

NO_CHANCE = [
    "model.dropout=0",
    "model.attention_dropout=0",
    "model.activation_dropout=0",
    "model.drop_path=0",
    "decoder.mask_noise_std=0",
]
AUDIO = ["encoder.input_dropout=0", "mask.equal_counts=false"]
"""What depends on how a step is split up."""
EPS = "optim.eps=1e-3"
"""Adam divides by the root of the second moment: a larger eps keeps rounding errors of gradients
that are zero in exact arithmetic (biases of keys) from becoming whole steps."""


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[str]]:
    """(modality or JOINT, run folder) to the words of ``selfdistill pretrain``, without chance
    where it depends on the number of processes."""
    folder = tmp_path_factory.mktemp("data")
    shards = {name: write_shards(folder / name, name) for name in MODALITIES}

    def make(modality: str, run: Path, *more: str) -> list[str]:
        path = folder / f"{len([*folder.glob('*.yaml')])}.yaml"
        own = [f"modalities.audio.{word}" for word in AUDIO] if modality == JOINT else []
        if modality == JOINT:
            write_joint_config(path, shards, run)
        else:
            write_config(path, modality, shards[modality], run)
            own = AUDIO if modality == "audio" else []
        return [str(path), *NO_CHANCE, *own, EPS, *more]

    return make
