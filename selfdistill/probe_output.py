"""What ``selfdistill probe`` is given and writes, beside what it computes."""

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfdistill.durable import write_atomically
from selfdistill.errors import SelfdistillError, UserError
from selfdistill.probes.report import rows_of


def check_files(*files: Path | None) -> None:
    """Refuse files that cannot be written, before any work is done."""
    for path in files:
        if path is None:
            continue
        option = "--json" if path is files[0] else "--csv"
        if path.is_dir():
            raise UserError(f"{option}: '{path}' is a folder; name a file")
        if not path.parent.is_dir():
            raise UserError(f"{option}: there is no folder '{path.parent}'; make it first")


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
    print(f"\nwritten to {path}")
