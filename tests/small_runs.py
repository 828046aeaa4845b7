"""Runs of three steps, made in this process where they are first asked for."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from launching import ENVIRONMENT, checkpoint, fresh_accelerate
from modality_cases import MODALITIES
from safetensors.torch import load_file
from tiny import JOINT, write_config, write_joint_config, write_shards
from torch import Tensor

from selfdistill.cli import main
from selfdistill.config import RunConfig
from selfdistill.config_files.load import load_config
from selfdistill.modalities.base import load_modality
from selfdistill.objective.data2vec import Data2Vec

__all__ = [
    "JOINT",
    "STEPS",
    "SmallRuns",
    "below",
    "checkpoint",
    "fresh",
    "same",
    "saved",
]

STEPS = 3
# a block that is dropped in all steps would learn nothing
WORDS = (
    f"train.steps={STEPS}",
    "optim.warmup_steps=0",
    "checkpoint.every=2",
    "model.layer_drop=0",
)


class SmallRuns:
    """Runs, and folders for transformers, of every modality, and a run over all.

    Args:
        folder: for all files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def config_file(self, modality: str, run_dir: Path) -> Path:
        path = self.folder / "configs" / f"{modality}.yaml"
        if modality == JOINT:
            every = {name: self.shards(name) for name in MODALITIES}
            return write_joint_config(path, every, run_dir)
        return write_config(path, modality, self.shards(modality), run_dir)

    def shards(self, modality: str) -> list[str]:
        folder = self.folder / "shards" / modality
        if not folder.exists():
            write_shards(folder, modality)
        return [str(path) for path in sorted(folder.glob("*.tar"))]

    def config(self, modality: str, *words: str, run_dir: Path = Path("unused")) -> RunConfig:
        return load_config(self.config_file(modality, run_dir), [*WORDS, *words], load_modality)

    def pretrain(self, modality: str, run_dir: Path, *words: str) -> int:
        """The exit code of ``selfdistill pretrain``."""
        return self.pretrain_from(self.config_file(modality, run_dir), *WORDS, *words)

    def pretrain_from(self, *words: str | Path) -> int:
        with fresh_accelerate(), pytest.MonkeyPatch.context() as patch:
            for key, value in ENVIRONMENT.items():
                patch.setenv(key, value)
            return main(["pretrain", *map(str, words)])

    def run(self, modality: str) -> Path:
        """A run with checkpoints of steps 2 and 3; not to be changed."""
        path = self.folder / "runs" / modality
        if not path.exists():
            assert self.pretrain(modality, path) == 0
        return path

    def copy(self, modality: str, path: Path) -> Path:
        """A copy of that run, which may be changed."""
        return Path(shutil.copytree(self.run(modality), path))

    def exported(self, modality: str) -> Path:
        """The exported folder of that run; not to be changed."""
        path = self.folder / "exported" / modality
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            assert main(["export", str(self.run(modality)), "--out", str(path)]) == 0
        return path


def saved(run: Path, step: int) -> dict[str, Tensor]:
    """The model of a checkpoint."""
    return load_file(checkpoint(run, step) / "model.safetensors")


def below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def same(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


def fresh(config: RunConfig, seed: int = 7) -> Data2Vec:
    """An untrained model of a run."""
    torch.manual_seed(seed)
    return Data2Vec(config)
