"""Find and load an encoder that exists: in a run, a checkpoint, or a folder of transformers."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from selfdistill.config import (
    CheckpointConfig,
    DataConfig,
    EvalConfig,
    GuardConfig,
    LogConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
)
from selfdistill.config_files.load import build_config
from selfdistill.engine.checkpoint_files import Checkpoint, find_checkpoint, read_checkpoint
from selfdistill.errors import UserError
from selfdistill.hub.reader import HubFolder, is_hub_folder
from selfdistill.hub.remote import download, is_repository_name
from selfdistill.modalities.backbone import Backbone, build_backbone
from selfdistill.modalities.base import Modality, load_modality
from selfdistill.objective.state import of_student, of_teacher

Weights = Literal["student", "teacher"]
KEY = "MODEL"
"""What commands call a source, for the error messages."""
OF_TRAINING = {
    "guard": GuardConfig,
    "optim": OptimConfig,
    "train": TrainConfig,
    "data": DataConfig,
    "checkpoint": CheckpointConfig,
    "log": LogConfig,
    "eval": EvalConfig,
}
"""Sections of the config that the encoder does not depend on."""


@dataclass(frozen=True)
class Pretrained:
    """An encoder and what is known of it.

    Attributes:
        modality, config: of the run, of one over several what this one has; of a folder of
            transformers what it says of itself.
        run: the config of the whole run, where that is known; else ``config``.
        backbone: float32, on the CPU, in eval mode.
        source: the checkpoint, or the folder of transformers.
        companions: the folder of the files that belong to the weights.
        weights: whose they are.
        step: finished optimiser steps; None where that is not known.
        trained_with: the other modalities of the run.
        beyond: what a folder of transformers computes besides, as ``HubFolder`` tells it.
    """

    modality: Modality
    config: RunConfig
    run: RunConfig
    backbone: Backbone
    source: Path
    companions: Path
    weights: Weights
    step: int | None
    trained_with: Sequence[str] = ()
    beyond: str = ""

    def batch_size(self, wanted: int) -> int:
        """Inputs of a batch, so that features do not depend on what they are batched with."""
        return 1 if self.config.compat.padding_leaks else wanted


def locate(source: str, key: str) -> Path:
    """A local path, or the local copy of a repository on the Hub.

    Raises:
        UserError: there is neither.
    """
    try:
        path = Path(source).expanduser()
        if path.exists():
            return path
    except (OSError, RuntimeError) as error:  # too long a name, no such user, no permission
        raise UserError(f"{key}: cannot read {source}: {error}") from error
    if is_repository_name(source):
        return download(source, key)
    raise UserError(
        f"{key}: there is no {source}; give a run's folder, a checkpoint, a folder of "
        "transformers, or USER/NAME on the Hub"
    )


def load_pretrained(source: str, weights: Weights = "student", modality: str = "") -> Pretrained:
    """Load an encoder to use it.

    Args:
        source: a run's folder (its newest checkpoint), a checkpoint, a folder of transformers, or
            USER/NAME on the Hub.
        weights: of a run.
        modality: whose encoder, of a run over several.

    Raises:
        UserError: nothing there that can be loaded.
    """
    found = load_all(source, weights, modality)
    if len(found) > 1:
        raise UserError(
            f"--modality: {next(iter(found.values())).source} is of a run over "
            f"{', '.join(found)}; name one of them"
        )
    return next(iter(found.values()))


def load_all(
    source: str, weights: Weights = "student", modality: str = ""
) -> dict[str, Pretrained]:
    """The encoders of all modalities, by name, or of the one that is named; see
    ``load_pretrained``."""
    path = locate(source, KEY)
    if path.is_file():
        raise UserError(f"{KEY}: {path} is a file; give a run, a checkpoint or a folder")
    if is_hub_folder(path):
        return _of_hub_folder(path, weights, modality)
    checkpoint_path = find_checkpoint(path, KEY)
    checkpoint = read_checkpoint(checkpoint_path)
    run = checkpoint_config(checkpoint)
    return {
        name: _of_checkpoint(checkpoint_path, checkpoint, name, run, weights)
        for name in _chosen(run.parts(), modality, checkpoint_path)
    }


def _chosen(names: Collection[str], modality: str, source: Path) -> Collection[str]:
    if not modality:
        return names
    if modality not in names:
        raise UserError(
            f"--modality: {source} has no {modality} encoder; it has {', '.join(names)}"
        )
    return [modality]


def _of_checkpoint(
    path: Path, checkpoint: Checkpoint, name: str, run: RunConfig, weights: Weights
) -> Pretrained:
    parts = run.parts()
    modality, companions = load_modality(parts[name].modality), run_folder(path)
    config = modality.attach(parts[name], companions)
    backbone = build_backbone(config)
    state = of_student(checkpoint.model, name)
    if weights == "teacher":  # what it has not of its own is the student's
        state |= of_teacher(checkpoint.model, name)
    backbone.load_state_dict(state)
    backbone.eval()
    others = [other for other in parts if other != name]
    return Pretrained(
        modality, config, run, backbone, path, companions, weights, checkpoint.step, others
    )


def run_folder(checkpoint: Path) -> Path:
    """The run that a checkpoint ``RUN/checkpoints/step-XXXXXXXX`` is of."""
    return checkpoint.absolute().parent.parent


def checkpoint_config(checkpoint: Checkpoint) -> RunConfig:
    """The config of the run that a checkpoint is of.

    Keys that this version does not know are left out, where they do not concern the encoder.

    Raises:
        UserError: a version wrote it whose config this one cannot read.
    """
    given: dict[str, Any] = checkpoint.state["config"]
    try:
        return build_config(_known(given), load_modality)
    except UserError as error:
        raise UserError(
            "the checkpoint was written by another version of this program, whose config this one "
            f"cannot read: {error}"
        ) from error


def _known(given: Mapping[str, Any]) -> dict[str, Any]:
    known = dict(given)
    for section, kind in OF_TRAINING.items():
        if isinstance(given.get(section), Mapping):
            keys = {field.name for field in fields(kind)}
            known[section] = {k: value for k, value in given[section].items() if k in keys}
    if given.get("modalities"):
        known["modalities"] = {name: _known(part) for name, part in given["modalities"].items()}
    return known


def _of_hub_folder(path: Path, weights: Weights, modality: str) -> dict[str, Pretrained]:
    if weights == "teacher":
        raise UserError(f"--weights: {path} is a folder of transformers and has no teacher")
    folder = HubFolder(path, KEY)
    (name,) = _chosen([folder.modality.name], modality, path)
    config = folder.config()
    backbone = build_backbone(config)
    folder.load_into(backbone)
    backbone.eval()
    found = Pretrained(
        folder.modality, config, config, backbone, path, path, weights, None, beyond=folder.beyond
    )
    return {name: found}
