"""Start a run from weights that exist: a run of ours, or an original's checkpoint."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from selfdistill.engine.checkpoint import Checkpointer, find_checkpoint
from selfdistill.errors import UserError
from selfdistill.objective.data2vec import Data2Vec
from selfdistill.originals import load_original


def load_initial_weights(model: Data2Vec, path: Path) -> None:
    """Load student, head and teacher.

    Args:
        model: whose architecture must be that of the weights.
        path: a run's folder or one of its checkpoints, or a file of the original authors
            (.safetensors, or .pt and .pth as fairseq and BEiT save them).

    Raises:
        UserError: nothing there that can be read, or it does not fit the model.
    """
    if path.is_dir():
        folder = find_checkpoint(path, key="init_from")
        weights = Checkpointer(folder.parent, keep=1).load(folder).model
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            reasons = " ".join(str(error).split())
            raise UserError(f"init_from: {folder} does not fit the model: {reasons}") from error
        return
    student, teacher = _read_original(path)
    load_original(model, student, teacher)


def _read_original(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
    content = _read_file(path)
    model = content.get("model", content)
    if not isinstance(model, Mapping):
        raise UserError(f"init_from: {path} holds no parameters")
    # BEiT keeps the teacher beside the student, fairseq among its parameters
    teacher = content.get("model_ema", model.get("_ema"))
    student = {name: value for name, value in model.items() if isinstance(value, Tensor)}
    return student, teacher


def _read_file(path: Path) -> dict[str, Any]:
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"init_from: cannot read {path}: {error.strerror}") from error
    except (SafetensorError, RuntimeError, EOFError) as error:
        raise UserError(f"init_from: {path} is damaged or no checkpoint: {error}") from error
    except pickle.UnpicklingError as error:
        raise UserError(
            f"init_from: {path} holds pickled objects beside its tensors, which are never loaded "
            "here because they may run code; save its tensors as .safetensors first"
        ) from error
    if not isinstance(loaded, dict):
        raise UserError(f"init_from: {path} holds no parameters")
    return loaded
