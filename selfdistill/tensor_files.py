"""Files of named tensors: ours are written, other people's are read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from selfdistill.durable import sync_file
from selfdistill.errors import UserError
from selfdistill.torch_file import read_torch_file


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file, with the rights that the user's umask leaves, and wait until it is
    on the disk.

    Args:
        tensors: contiguous, on the CPU, none sharing memory with another.

    Raises:
        OSError: it cannot be written.
    """
    path.touch()
    mode = path.stat().st_mode  # safetensors makes files that only their owner can read
    try:
        save_file(dict(tensors), path, metadata=None if metadata is None else dict(metadata))
    except SafetensorError as error:
        raise OSError(str(error)) from error
    path.chmod(mode)
    sync_file(path)


def read_weights(path: Path, key: str) -> Mapping[str, Any]:
    """What a file of weights holds: tensors by name (.safetensors), or whatever torch saved.

    Nothing that is pickled in it is run.

    Args:
        key: the config's or the command's name of it, for the error messages.

    Raises:
        UserError: it cannot be read, is damaged, or holds nothing by name.
    """
    if path.suffix != ".safetensors":
        content = read_torch_file(path, key)
        if not isinstance(content, Mapping):
            raise UserError(f"{key}: {path} holds no parameters")
        return content
    try:
        path.open("rb").close()  # whose errors have the system's words, unlike those of safetensors
        return load_file(path)
    except OSError as error:
        raise UserError(f"{key}: cannot read {path}: {error.strerror}") from error
    except SafetensorError as error:
        raise UserError(
            f"{key}: {path} is no safetensors file, or is cut short ({error}); fetch it again, or "
            "save the weights as safetensors"
        ) from error
