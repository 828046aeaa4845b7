"""The files under configs/, loaded, and their values by dotted key."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from selfdistill.config import RunConfig
from selfdistill.config_files.load import load_config
from selfdistill.modalities.base import load_modality

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").rglob("*.yaml"))


def load(file: str, *overrides: str) -> RunConfig:
    return load_config(ROOT / file, overrides, load_modality)


def values(file: str) -> dict[str, Any]:
    return _flat(asdict(load(file)))


def _flat(sections: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in sections.items():
        leaves |= (
            _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return leaves
