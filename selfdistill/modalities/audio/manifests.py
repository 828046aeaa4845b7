"""Lists of recordings that other toolkits have written."""

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from selfdistill.errors import UserError
from selfdistill.packing.entries import Entry


def read_tsv(path: Path) -> Iterator[Entry]:
    """fairseq's: the root folder in the first line, then relative path and number of samples.

    Raises:
        UserError: it cannot be read, or is something else.
    """
    lines = _lines(path)
    root = Path(next(lines, (0, ""))[1])
    if not root.is_dir():
        root = path.parent / root
    for number, line in lines:
        name, tab, samples = line.partition("\t")
        if not tab or not samples.strip().isdigit():
            raise UserError(
                f"SOURCE: line {number} of '{path}' is no 'path, tab, number of samples'; the "
                "first line must be the root folder"
            )
        yield Entry(str(root / name), _plain(name))


def read_jsonl(path: Path) -> Iterator[Entry]:
    """NeMo's: one object per line, with ``audio_filepath`` and, for a part of the file, ``offset``
    and ``duration`` in seconds. Relative paths start at the manifest.

    Raises:
        UserError: it cannot be read, or is something else.
    """
    folders = {os.path.dirname(_row(path, *line)["audio_filepath"]) for line in _lines(path)}
    absolute = [folder for folder in folders if os.path.isabs(folder)]
    common = os.path.commonpath(absolute) if absolute else ""
    for number, line in _lines(path):
        row = _row(path, number, line)
        file = row["audio_filepath"]
        name = os.path.relpath(file, common) if os.path.isabs(file) else file
        start = float(row.get("offset") or 0)
        stop = start + float(row["duration"]) if row.get("duration") else math.inf
        yield Entry(str(path.parent / file), _plain(name), start, stop)


def _row(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row: dict[str, Any] = json.loads(line)
        if not isinstance(row["audio_filepath"], str) or not row["audio_filepath"]:
            raise TypeError("audio_filepath is no path")
        os.fsencode(row["audio_filepath"])  # ValueError where JSON says what no path can be
        times = [float(row.get(key) or 0) for key in ("offset", "duration")]
        if not all(0 <= time < math.inf for time in times):
            raise ValueError(f"offset and duration {times}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"SOURCE: line {number} of '{path}' is no object with audio_filepath ({error!r}); give "
            "a manifest of NeMo, or a folder"
        ) from error
    return row


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not empty, with their number from 1."""
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
            for number, line in enumerate(file, 1):
                if "\0" in line:
                    raise UserError(f"SOURCE: line {number} of '{path}' is no text")
                if line.strip():
                    yield number, line.rstrip("\r\n")
    except OSError as error:
        raise UserError(f"SOURCE: cannot read '{path}': {error.strerror}") from error


def _plain(name: str) -> str:
    """A relative path without steps upwards."""
    parts = [part for part in name.split("/") if part not in ("", ".", "..")]
    return "/".join(parts)


MANIFESTS = {".tsv": read_tsv, ".jsonl": read_jsonl, ".json": read_jsonl}
