"""Features in files, found again by what they were computed of, and read as maps of memory.

An entry is a folder with one ``.npy`` file per layer, ``numbers``, ``labels`` and ``lengths``, and
``entry.json``, which has the SHA-256 of each. It is written beside and renamed when it is whole.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import nn

from selfdistill import __version__
from selfdistill.data.elsewhere.address import Remote
from selfdistill.data.locations import Location
from selfdistill.errors import UserError
from selfdistill.probes.features import Features, Rows

FORMAT = 1
ENTRY = "entry.json"
OURS = re.compile("[0-9a-f]{32}")
"""The names of entries."""
WRITING = ".writing-"
ABANDONED_SECONDS = 24 * 3600
TOLD_BY = 256
"""So many samples tell how large those of a whole set will be."""
SURE = 1.25
"""So much too large must a set seem by some of its samples, whose lengths differ, to be refused."""

logger = logging.getLogger(__name__)


class FeatureCache:
    """A folder of features that stays below a number of bytes.

    Entries used longest ago go first; those that this process has used stay.

    Args:
        folder: made where it is not there.
        most: bytes of all entries together, and of one.

    Raises:
        UserError: the folder cannot be made.
    """

    def __init__(self, folder: Path, most: int) -> None:
        self.folder, self.most = folder.expanduser(), most
        self._used: set[str] = set()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--cache: cannot make '{folder}': {error.strerror}") from error

    def find(self, key: Mapping[str, Any]) -> Features | None:
        """The features that were kept under ``key`` (plain values); None: there are none.

        A damaged entry is removed, with a warning.
        """
        entry = self.folder / _digest(key)
        if not entry.exists():
            return None
        try:
            found = _read(entry)
            os.utime(entry)
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("%s is damaged (%s); its features are computed again", entry, error)
            shutil.rmtree(entry, ignore_errors=True)
            return None
        self._used.add(entry.name)
        return found

    def keep(self, key: Mapping[str, Any], batches: Iterable[Rows], samples: int = 0) -> Features:
        """Write the features of all ``batches`` under ``key`` and give them back.

        Args:
            samples: that the batches have together, or more; 0: not known.

        Raises:
            UserError: they are larger than the cache may become, or will be.
            OSError: they cannot be written; it names the folder, and what was written is gone.
        """
        entry = self.folder / _digest(key)
        writing = Path(tempfile.mkdtemp(prefix=WRITING, dir=self.folder))
        try:
            _write(writing, batches, key, self.most, samples)
            with suppress(OSError):  # another process was quicker
                writing.rename(entry)
        except OSError as error:
            error.filename = error.filename or str(self.folder)  # a disk that is full names none
            raise
        finally:
            shutil.rmtree(writing, ignore_errors=True)
        self._used.add(entry.name)
        self._make_room()
        return _read(entry)

    def _make_room(self) -> None:
        entries: list[tuple[float, int, Path]] = []  # last use, bytes
        for path in self.folder.iterdir():
            with suppress(FileNotFoundError):  # another process makes room, too, or renames its own
                last = path.stat().st_mtime
                if path.name.startswith(WRITING):
                    if time.time() - last > ABANDONED_SECONDS:  # of a process that was killed
                        shutil.rmtree(path, ignore_errors=True)
                elif (path / ENTRY).is_file():
                    entries.append((last, sum(f.stat().st_size for f in path.iterdir()), path))
                elif OURS.fullmatch(path.name):  # killed while it was removed
                    shutil.rmtree(path, ignore_errors=True)
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if total > self.most and path.name not in self._used:
                shutil.rmtree(path, ignore_errors=True)
                total -= size


class _Growing:
    """An ``.npy`` file whose first axis grows."""

    def __init__(self, file: BinaryIO, first: np.ndarray) -> None:
        self._file, self._first, self.rows = file, first, 0
        self._head()

    def _head(self) -> None:
        # numpy leaves room for the first axis, so that the header keeps its length
        shape = (self.rows, *self._first.shape[1:])
        described = {
            "descr": np.lib.format.dtype_to_descr(self._first.dtype),
            "fortran_order": False,
            "shape": shape,
        }
        np.lib.format.write_array_header_1_0(self._file, described)

    def add(self, rows: np.ndarray) -> None:
        self._file.write(np.ascontiguousarray(rows, dtype=self._first.dtype).data)
        self.rows += len(rows)

    def finish(self) -> None:
        self._file.seek(0)
        self._head()


def _write(
    folder: Path, batches: Iterable[Rows], key: Mapping[str, Any], most: int, samples: int
) -> None:
    files: dict[str, _Growing] = {}
    size = done = 0
    with ExitStack() as opened:
        for rows in batches:
            for name, array in _arrays(rows).items():
                if name not in files:
                    file = opened.enter_context(open(folder / f"{name}.npy", "wb"))
                    files[name] = _Growing(file, array)
                files[name].add(array)
                size += array.nbytes
            done += len(rows.numbers)
            expected = size * samples / done if done >= min(samples, TOLD_BY) else 0
            if size > most or expected > SURE * most:
                about = f" (about {expected / 1e9:.2g})" if expected > most else ""
                raise UserError(
                    f"--cache-gb: the features of one set need more than {most / 1e9:g}{about}; "
                    "raise it, take fewer samples, or leave out the attentive probe, which needs "
                    "those of all tokens (--probes)"
                )
        for growing in files.values():
            growing.finish()
    sums = {path.name: _sum(path) for path in sorted(folder.iterdir())}
    content = {"format": FORMAT, "key": key, "files": sums}
    (folder / ENTRY).write_text(json.dumps(content, indent=1), encoding="utf-8")


def _arrays(rows: Rows) -> dict[str, np.ndarray]:
    arrays = {f"layer_{i:03d}": layer for i, layer in enumerate(rows.layers)}
    arrays["labels"] = np.array(rows.labels, dtype=np.int64)
    arrays["numbers"] = np.array(rows.numbers, dtype=np.int64)
    if rows.lengths is not None:
        arrays["lengths"] = np.array(rows.lengths, dtype=np.int64)
    return arrays


def _read(entry: Path) -> Features:
    content = json.loads((entry / ENTRY).read_text(encoding="utf-8"))
    for name, expected in content["files"].items():
        if _sum(entry / name) != expected:
            raise ValueError(f"{name} is not what was written")
    arrays = {Path(name).stem: np.load(entry / name, mmap_mode="r") for name in content["files"]}
    layers = [array for name, array in sorted(arrays.items()) if name.startswith("layer_")]
    labels, numbers = np.array(arrays["labels"]), np.array(arrays["numbers"])
    lengths = np.array(arrays["lengths"]) if "lengths" in arrays else None
    return Features(layers, labels, numbers, lengths)


def _sum(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(key: Mapping[str, Any]) -> str:
    content = json.dumps([FORMAT, __version__, key], sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def weights_digest(module: nn.Module) -> str:
    """SHA-256 of names, types and values of all that a module keeps."""
    found = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        found.update(f"{name} {tensor.dtype} {[*tensor.shape]}\n".encode())
        found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def shards_digest(locations: Sequence[Location], keys: Sequence[str]) -> str:
    """What tells the samples of shards from others.

    Of files of this machine it is name, size and time of the last change, of others the URL; and
    of all the samples' keys.
    """
    found = hashlib.sha256()
    for location in locations:
        if isinstance(location, Remote):
            named: Sequence[Any] = (location.fingerprint(),)
        else:
            state = os.stat(location)
            named = (location.name, state.st_size, state.st_mtime_ns)
        found.update(f"{json.dumps(named)}\n".encode())
    for key in keys:
        found.update(f"{key}\n".encode("utf-8", "backslashreplace"))
    return found.hexdigest()


def numbers_digest(numbers: np.ndarray) -> str:
    """The same of a choice among the samples."""
    return hashlib.sha256(numbers.astype(np.int64).data).hexdigest()


def texts_digest(texts: Mapping[str, str]) -> str:
    """SHA-256 of files by name; empty where there are none."""
    found = hashlib.sha256()
    for name, content in sorted(texts.items()):
        found.update(f"{name}\n{content}\n".encode())
    return found.hexdigest() if texts else ""
