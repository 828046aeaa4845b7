"""Versions of what is installed, without importing it."""

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

import selfdistill

PACKAGES = (
    "torch",
    "torchvision",
    "numpy",
    "accelerate",
    "webdataset",
    "einops",
    "timm",
    "pillow",
    "soundfile",
    "sentencepiece",
    "tokenizers",
    "safetensors",
    "omegaconf",
)
"""Those that the results of a run may depend on."""


def versions(packages: Iterable[str] = PACKAGES) -> dict[str, str | None]:
    """This package's and theirs, by name; None: it is not installed."""
    return {"selfdistill": selfdistill.__version__, **{name: _version(name) for name in packages}}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
