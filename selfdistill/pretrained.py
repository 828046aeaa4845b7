"""Find and load an encoder that exists: in a run, a checkpoint, or a folder of transformers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from selfdistill.config import RunConfig
from selfdistill.config_file import build_config
from selfdistill.engine.checkpoint import Checkpointer, find_checkpoint
from selfdistill.engine.checkpoint_files import Checkpoint
from selfdistill.errors import UserError
from selfdistill.hub.reader import HubFolder, is_hub_folder
from selfdistill.hub.remote import download, is_repository_name
from selfdistill.modalities.backbone import Backbone, build_backbone
from selfdistill.modalities.base import Modality, load_modality

Weights = Literal["student", "teacher"]


@dataclass(frozen=True)
class Pretrained:
    """An encoder and what is known of it.

    Attributes:
        modality, config: of the run; of a folder of transformers what it says of itself.
        backbone: float32, on the CPU, in eval mode.
        source: the checkpoint, or the folder of transformers.
        companions: the folder of the files that belong to the weights.
        weights: whose they are.
        step: finished optimiser steps; None where that is not known.
    """

    modality: Modality
    config: RunConfig
    backbone: Backbone
    source: Path
    companions: Path
    weights: Weights
    step: int | None


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


def load_pretrained(source: str, weights: Weights = "student", key: str = "MODEL") -> Pretrained:
    """Load an encoder to use it.

    Args:
        source: a run's folder (its newest checkpoint), a checkpoint, a folder of transformers, or
            USER/NAME on the Hub.
        weights: of a run.
        key: the command's name of ``source``, for the error messages.

    Raises:
        UserError: nothing there that can be loaded.
    """
    path = locate(source, key)
    if path.is_file():
        raise UserError(f"{key}: {path} is a file; give a run, a checkpoint or a folder")
    if is_hub_folder(path):
        return _of_hub_folder(path, weights, key)
    checkpoint_path = find_checkpoint(path, key)
    checkpoint = Checkpointer(checkpoint_path.parent, keep=1).load(checkpoint_path)
    companions = run_folder(checkpoint_path)
    config = checkpoint_config(checkpoint)
    modality = load_modality(config.modality)
    config = modality.attach(config, companions)
    backbone = build_backbone(modality, config)
    backbone.load_state_dict(_backbone_state(checkpoint.model, weights))
    backbone.eval()
    return Pretrained(
        modality, config, backbone, checkpoint_path, companions, weights, checkpoint.step
    )


def run_folder(checkpoint: Path) -> Path:
    """The run that a checkpoint ``RUN/checkpoints/step-XXXXXXXX`` is of."""
    return checkpoint.absolute().parent.parent


def checkpoint_config(checkpoint: Checkpoint) -> RunConfig:
    """The config of the run that a checkpoint is of."""
    given: dict[str, Any] = checkpoint.state["config"]
    return build_config(given, load_modality)


def _of_hub_folder(path: Path, weights: Weights, key: str) -> Pretrained:
    if weights == "teacher":
        raise UserError(f"--weights: {path} is a folder of transformers and has no teacher")
    folder = HubFolder(path, key)
    config = folder.config()
    backbone = build_backbone(folder.modality, config)
    folder.load_into(backbone)
    backbone.eval()
    return Pretrained(folder.modality, config, backbone, path, path, weights, None)


def _backbone_state(model: dict[str, Tensor], weights: Weights) -> dict[str, Tensor]:
    """The student's tensors, or the teacher's; what the teacher shares is the student's."""
    student = _below("student.", model)
    return student if weights == "student" else student | _below("teacher.backbone.", model)


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
