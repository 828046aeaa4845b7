"""The model card: what the weights are, how they were made, and the lines that load them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import indent
from typing import Any

import yaml

import selfdistill
from selfdistill.config import CompatConfig, RunConfig
from selfdistill.config_files.load import dump_config
from selfdistill.modalities.base import HubFormat, step_size
from selfdistill.probes.table import render

ARTICLES = {
    "dense": "[data2vec](https://arxiv.org/abs/2202.03555)",
    "visible": "[data2vec 2.0](https://arxiv.org/abs/2212.07525)",
}
RECIPE = (
    "modality",
    "seed",
    "encoder",
    "mask",
    "input",
    "model",
    "objective",
    "teacher",
    "optim",
    "train",
)
"""What one needs to repeat a training; the other keys say where things lie on its machine."""
OF_VISIBLE = ("strategy", "decoder")
"""The same of the strategy that is not the default."""


@dataclass(frozen=True)
class Origin:
    """What a run tells of its weights.

    Attributes:
        weights: student or teacher.
        step: finished optimiser steps.
        loss: of the last logged interval up to that step; None: not known.
        evaluation: as in ``eval.json``, of that step and these weights; empty: none.
        trained_with: the other modalities of the run.
    """

    weights: str
    step: int
    loss: float | None
    evaluation: Mapping[str, Any]
    trained_with: Sequence[str] = ()


def model_card(hub: HubFormat, config: RunConfig, origin: Origin, parameters: int) -> str:
    """The README.md of an exported folder, with the Hub's front matter.

    Args:
        hub: format of the modality.
        config: of the run; the files that it reads are those of the exported folder.
        origin: of the weights.
        parameters: how many numbers the weights have.
    """
    data = [name.rstrip("/").rsplit("/", 1)[-1] for name in config.data.train]
    front = {
        "library_name": "transformers",
        "license": "other",
        "license_name": "unspecified",
        "datasets": [],
        "pipeline_tag": hub.task,
        "tags": ["data2vec", hub.model_type, config.modality, "self-supervised"],
    }
    loss = "" if origin.loss is None else f", loss {origin.loss:.4f}"
    use = 'path = "."  # this folder, or its name on the Hub\n' + hub.usage(config)
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---",
        f"# An encoder for {config.modality}, pretrained without labels",
        f"{parameters / 1e6:.2f} M parameters, {config.model.depth} layers, "
        f"{config.model.width} wide. Pretrained by {ARTICLES[config.strategy]} with selfdistill "
        f"{selfdistill.__version__}; these are the weights of the {origin.weights} after "
        f"{origin.step} of {config.train.steps} steps of {step_size(config)}"
        f"{loss}.{_together(origin)}{_begun(config)}",
        f"Data: {', '.join(f'`{name}`' for name in data)}. Set `license` and `datasets` above to "
        "what the data allow and are.",
        "## Use",
        indent(use, "    "),
        *_notes(hub, config),
        *_probes(origin),
        "## Recipe",
        indent(_recipe(config), "    "),
    ]
    return "\n\n".join(parts) + "\n"


def _together(origin: Origin) -> str:
    if not origin.trained_with:
        return ""
    others = " and ".join(origin.trained_with)
    return f" Its layers learned from {others} at the same time; every step has samples of all."


def _begun(config: RunConfig) -> str:
    # not from which: the name may be a place on the run's machine
    other = " Training began from other weights: name them above, as `base_model`."
    return other if config.init_from else ""


def _recipe(config: RunConfig) -> str:
    whole = yaml.safe_load(dump_config(config))
    keys = (*RECIPE, *(OF_VISIBLE if config.strategy == "visible" else ()))
    kept = {key: whole[key] for key in keys}
    if config.data.batch_length:  # then train.batch_size says nothing
        kept["data"] = {"batch_length": config.data.batch_length}
    if config.compat != CompatConfig():
        kept["compat"] = whole["compat"]
    return yaml.safe_dump(kept, sort_keys=False, allow_unicode=True).rstrip("\n")


def _notes(hub: HubFormat, config: RunConfig) -> list[str]:
    notes = [note for note in (hub.caution(config),) if note]
    notes += [f"`{pattern}` is left out: {reason}." for pattern, reason in hub.dropped.items()]
    return ["## Notes", *notes] if notes else []


def _probes(origin: Origin) -> list[str]:
    if not origin.evaluation:
        return []
    table = indent(render(origin.evaluation), "    ")
    return ["## What frozen features tell", "Accuracy in percent, mean over the sequence.", table]
