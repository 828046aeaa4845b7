"""What ``selfdistill probe`` found, as files."""

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfdistill.durable import write_atomically
from selfdistill.errors import SelfdistillError
from selfdistill.probes.report import rows_of


def write_json(path: Path, result: Mapping[str, Any]) -> None:
    """All that was found; raises ``SelfdistillError`` where it cannot be written."""
    _write(path, json.dumps(result, indent=2) + "\n")


def write_csv(path: Path, result: Mapping[str, Any]) -> None:
    """One row per task, probe, source and layer; raises as ``write_json``."""
    rows = list(rows_of(result))
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    _write(path, text.getvalue())


def _write(path: Path, content: str) -> None:
    try:
        write_atomically(path, content)
    except OSError as error:
        raise SelfdistillError(f"cannot write {path}: {error.strerror}") from error
