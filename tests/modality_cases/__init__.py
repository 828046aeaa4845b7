"""What tests have to know of each modality. One more is a file more here."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from selfdistill.modalities.base import load_modality, modality_names

Sample = dict[str, bytes]
Sections = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class ModalityCase:
    """Samples, configs and inputs of one modality.

    Attributes:
        sample: (generator, label 0 or 1) to a small sample that shows its label, to the
            probes of the raw input too.
        run: sections of a run's config that trains on such samples in seconds, with chance wherever
            there can be some.
        tiny: sections for a model that is as small as can be.
        encoders: kinds of encoder to their sections; the first, which may have no name, is plain.
        inputs: generator to inputs of three samples, all as long as the longest.
        tokens: how many each of the three has.
        lengths: of the three, longest first; None: all are equally long.
        padding: value behind the end of a sample.
        has_mask_token: whether the dense strategy hides by a vector of its own.
    """

    sample: Callable[[np.random.Generator, int], Sample]
    run: Sections
    tiny: Sections
    encoders: dict[str, Sections]
    inputs: Callable[[torch.Generator], torch.Tensor]
    tokens: list[int]
    lengths: list[int] | None = None
    padding: int = 0
    has_mask_token: bool = True


def _case(name: str) -> ModalityCase:
    module = f"modality_cases.{name}"
    try:
        found: ModalityCase = importlib.import_module(module).CASE
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise pytest.UsageError(
            f"modality {name} is not tested: write tests/modality_cases/{name}.py"
        ) from error
    return found


MODALITIES = tuple(modality_names())
EXPORTABLE = tuple(name for name in MODALITIES if load_modality(name).hub)
MODALITY_CASES = {name: _case(name) for name in MODALITIES}
