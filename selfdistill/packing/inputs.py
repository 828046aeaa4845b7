"""The inputs of a job: found once, kept in little memory, and compared when the job goes on."""

import hashlib
import io
import os
import struct
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from selfdistill.durable import write_atomically
from selfdistill.packing.entries import Entry, Input
from selfdistill.packing.keys import sample_key

_ROW = struct.Struct("=qqqddii")
_COLUMNS = np.dtype(
    [
        ("end", "i8"),
        ("size", "i8"),
        ("mtime", "i8"),
        ("start", "f8"),
        ("stop", "f8"),
        ("name", "i4"),
        ("copy", "i4"),
    ]
)
_STATE = ("size", "mtime", "start", "stop")


class Inputs:
    """Inputs by number; some 50 bytes and a path each.

    Args:
        paths: all paths, one after the other.
        columns: of each input: where its path ends in ``paths`` and its name starts in the path,
            which of several with the same key it is, and the fields of ``Input``.
    """

    def __init__(self, paths: bytes, columns: np.ndarray) -> None:
        self._paths, self._columns = paths, columns

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> "Inputs":
        """The inputs of entries in their order, with size and time as they are now."""
        paths, rows, hashes = bytearray(), bytearray(), bytearray()
        for entry in entries:
            path, name = os.fsencode(entry.path), os.fsencode(entry.name)
            if not path.endswith(name):  # of a manifest that names its samples otherwise
                path = path + b"\0" + name
            paths += path
            size, mtime = _stat(entry.path)
            start = len(path) - len(name)
            rows += _ROW.pack(len(paths), size, mtime, entry.start, entry.stop, start, 0)
            key = sample_key(entry.name).encode()
            hashes += hashlib.blake2b(key, digest_size=8).digest()
        columns = np.frombuffer(rows, _COLUMNS)
        columns["copy"] = _copies(np.frombuffer(hashes, np.uint64))
        return cls(bytes(paths), columns)

    def __len__(self) -> int:
        return len(self._columns)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return int(self._columns["size"].clip(min=0).sum())

    def __getitem__(self, i: int) -> Input:
        path, name = self._path(i)
        row = self._columns[i]
        copy = f"~{row['copy'] + 1}" if row["copy"] else ""
        return Input(
            path=path,
            name=name,
            start=float(row["start"]),
            stop=float(row["stop"]),
            size=int(row["size"]),
            mtime=int(row["mtime"]),
            key=sample_key(name) + copy,
        )

    def _path(self, i: int) -> tuple[str, str]:
        first = int(self._columns["end"][i - 1]) if i else 0
        path = self._paths[first : int(self._columns["end"][i])]
        name = path[int(self._columns["name"][i]) :]
        return os.fsdecode(path.partition(b"\0")[0]), os.fsdecode(name)

    def save(self, path: Path) -> None:
        content = io.BytesIO()
        np.savez(content, paths=np.frombuffer(self._paths, np.uint8), columns=self._columns)
        write_atomically(path, content.getvalue())

    @classmethod
    def load(cls, path: Path) -> "Inputs":
        with np.load(path, allow_pickle=False) as file:
            return cls(file["paths"].tobytes(), file["columns"])

    def change_since(self, before: "Inputs") -> str:
        """What differs from how the inputs were, in words; empty: nothing."""
        if self._state() == before._state():
            return ""
        old, new = before._by_name(), self._by_name()
        kinds = {
            "gone": [name for name in old if name not in new],
            "new": [name for name in new if name not in old],
            "changed": [name for name in new if name in old and new[name] != old[name]],
        }
        words = [
            f"{len(names)} {kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
            for kind, names in kinds.items()
            if names
        ]
        return ", ".join(words) or "they come in another order"

    def _state(self) -> bytes:
        """A sum over everything but where the files lie."""
        found = hashlib.sha256()
        for i in range(len(self)):
            found.update(os.fsencode(self._path(i)[1]) + b"\0")
        for field in _STATE:
            found.update(self._columns[field].tobytes())
        return found.digest()

    def _by_name(self) -> dict[str, tuple[float, ...]]:
        named = {}
        for i in range(len(self)):
            copy = int(self._columns["copy"][i])
            name = self._path(i)[1] + (f" ({copy + 1})" if copy else "")
            named[name] = tuple(float(self._columns[field][i]) for field in _STATE)
        return named


def _stat(path: str) -> tuple[int, int]:
    try:
        found = os.stat(path)
    except OSError:
        return -1, 0
    return found.st_size, found.st_mtime_ns


def _copies(hashes: np.ndarray) -> np.ndarray:
    """How many of the same hash come before each, int64."""
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    fresh = np.concatenate([[True], ordered[1:] != ordered[:-1]])[: len(hashes)]
    places = np.arange(len(hashes))
    first = np.maximum.accumulate(np.where(fresh, places, 0)) if len(hashes) else places
    copies = np.empty(len(hashes), np.int64)
    copies[order] = places - first
    return copies
