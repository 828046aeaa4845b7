"""An encoder as a folder that transformers loads."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub import split_torch_state_dict_into_shards
from torch import Tensor

from selfdistill.config import RunConfig
from selfdistill.durable import sync_folder, write_synced
from selfdistill.errors import SelfdistillError, UserError
from selfdistill.hub.reader import CONFIG
from selfdistill.modalities.base import HubFormat, Modality
from selfdistill.renaming import to_theirs
from selfdistill.tensor_files import save_tensors

MAX_SHARD_SIZE = "5GB"
INDEX = "model.safetensors.index.json"
WRITING = ".writing"
"""In a folder that is there: where the files are until they are whole."""


def config_json(hub: HubFormat, config: RunConfig) -> dict[str, Any]:
    """The content of ``config.json``.

    Raises:
        UserError: transformers has no class for such an encoder; the key in the way is named.
    """
    return {
        "architectures": [hub.architecture],
        "model_type": hub.model_type,
        "torch_dtype": "float32",
        **hub.config(config),
    }


def why_not_exportable(modality: Modality, config: RunConfig) -> str:
    """What keeps transformers from holding a run's encoder; nothing if it can."""
    if modality.hub is None:
        return f"modality {modality.name} names no class of it (MODALITY has no hub format)"
    try:
        modality.hub.config(config)
    except UserError as error:
        return str(error)
    return ""


def hub_tensors(
    hub: HubFormat, config: RunConfig, backbone: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The encoder's parameters by transformers' names, float32, each with memory of its own.

    Args:
        backbone: parameters by their names in ``Backbone``.
    """
    kept = {
        name: tensor
        for name, tensor in backbone.items()
        if not any(fnmatch(name, pattern) for pattern in hub.dropped)
    }
    found = hub.unfold({**to_theirs(kept, hub.names), **hub.constants(config)})
    return {name: tensor.detach().float().cpu().clone() for name, tensor in sorted(found.items())}


def check_free(out: Path) -> None:
    """Refuse a folder that holds something.

    Raises:
        UserError: it does, or it is a file.
    """
    if out.exists() and (not out.is_dir() or {path.name for path in out.iterdir()} - {WRITING}):
        raise UserError(f"--out: {out} exists and is not empty; choose another folder")


@contextmanager
def appearing(out: Path) -> Iterator[Path]:
    """A folder to write to, which becomes ``out`` when the block ends.

    Args:
        out: must not be there, or be empty: then it is filled with what was written, a
            ``config.json`` last.

    Raises:
        UserError: ``out`` holds something.
        SelfdistillError: it cannot be written; nothing is left behind.
    """
    check_free(out)
    out = out.absolute()
    # one that is there may be a mount point, or have somebody's shell in it, so that it must stay
    is_there = out.exists()
    writing = out / WRITING if is_there else out.with_name(f".{out.name}.writing")
    try:
        shutil.rmtree(writing, ignore_errors=True)
        writing.mkdir(parents=True)
        yield writing
        sync_folder(writing)
        if is_there:
            _move_all(writing, out)
        else:
            os.rename(writing, out)
            sync_folder(out.parent)
    except OSError as error:
        raise SelfdistillError(f"--out: cannot write {out}: {error}") from error
    finally:
        shutil.rmtree(writing, ignore_errors=True)


def _move_all(source: Path, folder: Path) -> None:
    """All or nothing; last ``config.json``, by which a folder of transformers is known."""
    moved = []
    try:
        for path in sorted(source.iterdir(), key=lambda path: path.name == CONFIG):
            moved.append(path.rename(folder / path.name))
    except OSError:
        for path in moved:
            path.rename(source / path.name)
        raise
    sync_folder(folder)


def write_folder(
    out: Path,
    tensors: Mapping[str, Tensor],
    texts: Mapping[str, str],
    max_shard_size: str = MAX_SHARD_SIZE,
) -> None:
    """Write a folder that appears under its name when it is whole; raises as ``appearing``.

    Args:
        out: as of ``appearing``.
        tensors: contiguous, by transformers' names; split as transformers does it where they
            exceed ``max_shard_size``.
        texts: contents of the other files by name.
    """
    with appearing(out) as folder:
        for name, text in texts.items():
            write_synced(folder / name, text)
        _write_tensors(folder, tensors, max_shard_size)


def _write_tensors(folder: Path, tensors: Mapping[str, Tensor], max_shard_size: str) -> None:
    split = split_torch_state_dict_into_shards(
        dict(tensors),
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_size,
    )
    for name, members in split.filename_to_tensors.items():
        save_tensors(folder / name, {n: tensors[n] for n in members}, {"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        write_synced(folder / INDEX, json.dumps(index, indent=2, sort_keys=True) + "\n")


def texts_of(hub: HubFormat, config: RunConfig, companions: Path, card: str) -> dict[str, str]:
    """Contents of all files beside the weights, by name.

    Raises:
        UserError: as ``config_json``; or a companion is missing.
    """
    return {
        CONFIG: json.dumps(config_json(hub, config), indent=2) + "\n",
        **hub.processor(config, companions),
        "README.md": card,
    }
