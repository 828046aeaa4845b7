"""A folder of transformers' data2vec, as our config and weights."""

import json
import logging
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selfdistill.config import RunConfig
from selfdistill.config_files.load import build_config
from selfdistill.errors import UserError
from selfdistill.modalities.backbone import Backbone
from selfdistill.modalities.base import HubFormat, Modality, load_modality, modality_names
from selfdistill.renaming import to_ours
from selfdistill.tensor_files import read_weights

logger = logging.getLogger(__name__)

CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
WHOLE_PROCESSOR = "processor_config.json"
"""Where transformers 5 keeps it if it was saved with a tokenizer, as after fine-tuning for CTC."""
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""The second is what older repositories hold; nothing that is pickled in it is run."""


def is_hub_folder(path: Path) -> bool:
    return (path / CONFIG).is_file()


class HubFolder:
    """A folder whose weights a data2vec class of transformers can load.

    Args:
        path: the folder.
        key: what the user called it, for the error messages.

    Attributes:
        modality: whose encoder it holds.
        format: of that modality.
        sections: of the config, as far as the folder tells.
        beyond: what it computes besides, as ``HubFormat`` tells it; a warning has said so.

    Raises:
        UserError: there is no config of such a class, it asks for code of its own, or for what our
            encoder cannot be.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path = path
        self.key = key
        self.fields = self._json(CONFIG)
        if "auto_map" in self.fields:
            raise UserError(
                f"{key}: {path / CONFIG} asks to run code that comes with it (auto_map), which is "
                "never done here; remove the entry if the weights are those of a data2vec class"
            )
        self.modality, self.format = self._recognise()
        self.sections = self._sections()
        self.beyond = self.format.beyond(self.fields)
        if self.beyond:
            logger.warning("%s: %s: %s", key, path, self.beyond)

    def _recognise(self) -> tuple[Modality, HubFormat]:
        model_type, known = self.fields.get("model_type"), []
        for name in modality_names():
            modality = load_modality(name)
            if modality.hub is not None:
                if modality.hub.model_type == model_type:
                    return modality, modality.hub
                known.append(modality.hub.model_type)
        raise UserError(
            f"{self.key}: {self.path / CONFIG} is of model_type {model_type!r}; "
            f"expected one of {', '.join(known)}"
        )

    def _sections(self) -> dict[str, dict[str, Any]]:
        processor = self._processor()
        try:
            return self.format.sections(self.fields, processor, self.path)
        except KeyError as error:
            raise UserError(f"{self.key}: {self.path / CONFIG} has no {error}") from error
        except (TypeError, ValueError, ArithmeticError) as error:
            raise UserError(f"{self.key}: {self.path / CONFIG} is damaged: {error}") from error
        except UserError as error:
            raise UserError(f"{self.key}: {self.path}: {error}") from error

    def _processor(self) -> dict[str, Any] | None:
        whole = self._json(WHOLE_PROCESSOR) if (self.path / WHOLE_PROCESSOR).is_file() else {}
        for part in ("feature_extractor", "image_processor"):
            if isinstance(found := whole.get(part), dict):
                return found
        return self._json(PROCESSOR) if (self.path / PROCESSOR).is_file() else None

    def config(self) -> RunConfig:
        """A run config whose encoder, blocks and input are those of the folder.

        Raises:
            UserError: its values cannot be those of an encoder.
        """
        given = {
            **self.sections,
            "objective": {"average_top_k_layers": 1},
            "modality": self.modality.name,
            "run_dir": str(self.path),
        }
        try:
            config = build_config(given, load_modality)
        except UserError as error:
            raise UserError(f"{self.key}: {self.path / CONFIG}: {error}") from error
        return self.modality.attach(config, self.path)

    def load_into(self, backbone: Backbone) -> list[str]:
        """Put the weights into a backbone of ``config``'s shape.

        Returns:
            What was left out or kept its first values, one line each.

        Raises:
            UserError: no weights, damaged ones, or names and shapes that do not fit, each named.
        """
        theirs, heads = self._without_heads(self._tensors())
        found, unknown = to_ours(self.format.fold(theirs), self.format.names)
        unknown = [name for name in unknown if not _any(name, self.format.ignored)]
        ours = dict(backbone.named_parameters())
        optional = self.format.optional
        lacking = sorted(ours.keys() - found.keys())
        fixed = {name: t for name, t in backbone.named_buffers() if name in found}
        kept = {name for name, tensor in fixed.items() if _same(found[name], tensor)}
        surplus = sorted(found.keys() - ours.keys() - kept)
        missing = [name for name in lacking if not _any(name, (*self.format.dropped, *optional))]
        problems = [
            *(f"{name} is missing" for name in missing),
            *(f"{name} is not known" for name in unknown),
            *(
                f"{name} is not {'the fixed one of' if name in fixed else 'in'} the model"
                for name in surplus
                if not _any(name, optional)
            ),
            *(
                f"{name} has the shape {tuple(found[name].shape)}, not {tuple(ours[name].shape)}"
                for name in sorted(ours.keys() & found.keys())
                if found[name].shape != ours[name].shape
            ),
        ]
        if problems:
            raise UserError(f"{self.key}: the weights in {self.path}: {'; '.join(problems)}")
        for name in ours.keys() & found.keys():
            ours[name].data.copy_(found[name])
        notes = [f"{name} is not in {self.path} and keeps its first values" for name in lacking]
        notes += [f"{name} of {self.path} has no place here and is left out" for name in surplus]
        if heads:
            notes.append(f"{', '.join(sorted(heads))} of {self.path} are a head's and are left out")
        return notes

    def _without_heads(self, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        prefix = self.format.prefix
        if not any(name.startswith(prefix) for name in tensors):
            return dict(tensors), []
        base = {
            name.removeprefix(prefix): tensor
            for name, tensor in tensors.items()
            if name.startswith(prefix)
        }
        return base, [name for name in tensors if not name.startswith(prefix)]

    def _tensors(self) -> dict[str, Tensor]:
        for name in WEIGHTS:
            index = self.path / f"{name}.index.json"
            if (self.path / name).is_file():
                return self._read(self.path / name)
            if index.is_file():
                return self._shards(index)
        raise UserError(
            f"{self.key}: {self.path} holds no weights; expected {' or '.join(WEIGHTS)}, "
            "in one file or with an index"
        )

    def _shards(self, index: Path) -> dict[str, Tensor]:
        placed = self._json(index.name).get("weight_map")
        names = list(placed.values()) if isinstance(placed, dict) else []
        if not names or not all(isinstance(name, str) and _is_file_name(name) for name in names):
            raise UserError(f"{self.key}: {index} names no files of its own folder in weight_map")
        return {
            name: tensor
            for shard in sorted(set(names))
            for name, tensor in self._read(index.parent / shard).items()
        }

    def _read(self, path: Path) -> dict[str, Tensor]:
        content = read_weights(path, self.key)
        # what is added up (``HubFormat.fold``) must not be rounded to half precision
        return {name: value.float() for name, value in content.items() if isinstance(value, Tensor)}

    def _json(self, name: str) -> dict[str, Any]:
        path = self.path / name
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"{self.key}: cannot read {path}: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise UserError(f"{self.key}: {path} is no JSON: {error}; fetch it again") from error
        if not isinstance(content, dict):
            raise UserError(f"{self.key}: {path} is no JSON object")
        return content


def _is_file_name(name: str) -> bool:
    return bool(name) and Path(name).name == name and "\0" not in name


def _same(one: Tensor, other: Tensor) -> bool:
    """But for what numbers up to 1 lose in half precision."""
    return one.shape == other.shape and torch.allclose(one, other, rtol=0, atol=2**-8)


def _any(name: str, patterns: Any) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)
