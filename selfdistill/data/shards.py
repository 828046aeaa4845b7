"""Local tar shards, found by name and read by sample number."""

import glob
import importlib.resources
import logging
import os
import re
import tarfile
from collections import OrderedDict
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from braceexpand import braceexpand
from tqdm import tqdm

from selfdistill.data.tarindex import LABEL, Source, TarIndex, index_tar
from selfdistill.errors import SelfdistillError, UserError

SAMPLE_SCHEME = "sample://"
SUFFIXES = (".tar", ".tar.gz", ".tgz")
CACHE_BYTES = 2 << 30
"""Decompressed shards that one process keeps; the one being read is always kept."""
MAX_OPEN = 128
PROGRESS_FROM = 8
"""Shards from which on indexing shows a progress bar."""

log = logging.getLogger(__name__)


def resolve(patterns: Sequence[str], key: str = "data.train") -> list[Path]:
    """The shards that the config names, in the order of the config.

    Args:
        patterns: paths, globs, brace lists such as ``train-{0000..0099}.tar``, folders (all shards
            in them, sorted), or ``sample://image/train.tar.gz`` for the data in the package.
        key: the config's name of ``patterns``, for the error messages.

    Raises:
        UserError: nothing is named, a name matches nothing, or it is a URL.
    """
    if not patterns:
        raise UserError(f"{key}: is empty; give the paths of tar shards, or {SAMPLE_SCHEME}NAME")
    return [path for pattern in patterns for path in _matches(pattern, key)]


def _matches(pattern: str, key: str) -> list[Path]:
    if pattern.startswith(SAMPLE_SCHEME):
        return [_sample(pattern, key)]
    if os.path.exists(pattern):
        return _shards_at(pattern, key)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", pattern):
        raise UserError(
            f"{key}: '{pattern}' is not a local path; copy the shards to a local or mounted folder "
            "and name them there"
        )
    found: list[Path] = []
    try:
        for name in braceexpand(os.path.expanduser(pattern)):
            hits = [name] if os.path.exists(name) else sorted(glob.glob(name, recursive=True))
            if not hits:
                part = "" if name == pattern else f" (part of '{pattern}')"
                raise UserError(f"{key}: no file matches '{name}'{part}; check the path")
            found += [path for hit in hits for path in _shards_at(hit, key)]
    except ValueError as error:
        raise UserError(f"{key}: '{pattern}' has unbalanced braces; check them") from error
    return found


def _shards_at(name: str, key: str) -> list[Path]:
    path = Path(name)
    if not path.is_dir():
        return [path]
    shards = sorted(p for p in path.iterdir() if p.name.endswith(SUFFIXES))
    if not shards:
        raise UserError(f"{key}: folder '{name}' has no {', '.join(SUFFIXES)} file; check the path")
    return shards


def _sample(pattern: str, key: str) -> Path:
    root = Path(str(importlib.resources.files("selfdistill"))) / "samples"
    known = {
        path.relative_to(root).as_posix(): path
        for path in sorted(root.rglob("*"))
        if path.name.endswith(SUFFIXES)
    }
    name = pattern.removeprefix(SAMPLE_SCHEME)
    if name not in known:
        choices = ", ".join(SAMPLE_SCHEME + name for name in known)
        raise UserError(f"{key}: there is no '{pattern}'; choose from {choices}")
    return known[name]


class ShardSet:
    """The samples of a list of tar shards, by number, in the order of the shards.

    All headers are read when it is made. Gzip shards are decompressed into memory, once per
    process as long as they fit together into ``CACHE_BYTES``. It may be pickled or forked into
    any number of processes.

    Args:
        paths: the shards, as from ``resolve``.
        extensions: members to read (lower case, no dot), beside the label ``cls``. Samples without
            any of them are left out.
        key: the config's name of ``paths``, for the error messages.

    Attributes:
        names: file name of each shard.
        sizes: samples of each shard.
        faults: (shard, what is wrong with it), such as a truncated end.
        skipped: samples left out.

    Raises:
        UserError: a shard cannot be read, is no tar, or has no sample.
    """

    def __init__(
        self, paths: Sequence[Path], extensions: Sequence[str], key: str = "data.train"
    ) -> None:
        if not paths:
            raise UserError(f"{key}: is empty; give the paths of tar shards")
        self.paths = [Path(path) for path in paths]
        self.extensions = tuple(e for e in dict.fromkeys(extensions) if e != LABEL)
        self.key = key
        self.names = [path.name for path in self.paths]
        self._sources: OrderedDict[int, Source] = OrderedDict()
        hidden = True if len(self.paths) < PROGRESS_FROM else None  # None: only on a terminal
        shards = tqdm(range(len(self.paths)), desc="indexing shards", disable=hidden)
        self._indexes = [self._index(shard) for shard in shards]
        self.sizes = [len(index) for index in self._indexes]
        self._starts = np.array([0, *accumulate(self.sizes)])
        self.skipped = sum(index.skipped for index in self._indexes)
        self.faults = [
            (name, fault)
            for name, index in zip(self.names, self._indexes, strict=True)
            for fault in index.faults
        ]
        if self.faults:
            shown = "; ".join(f"{name}: {fault}" for name, fault in self.faults[:5])
            log.warning("%s: %d faults in the shards: %s", key, len(self.faults), shown)

    def _index(self, shard: int) -> TarIndex:
        path = self.paths[shard]
        try:
            index = index_tar(self._source(shard), self.extensions)
        except tarfile.TarError as error:
            raise UserError(
                f"{self.key}: shard '{path}' is not a tar file ({error}); make it again, or take "
                "it out of the list"
            ) from error
        if not len(index):
            why = "; ".join(index.faults) or f"found: {', '.join(index.others) or 'no file'}"
            raise UserError(
                f"{self.key}: shard '{path}' has no sample with a member "
                f"{', '.join('.' + e for e in self.extensions)} ({why}); make it again, or take it "
                "out of the list"
            )
        return index

    def _source(self, shard: int) -> Source:
        source = self._sources.pop(shard, None) or Source(self.paths[shard], self.key)
        self._sources[shard] = source  # the newest last
        while len(self._sources) > 1 and (
            len(self._sources) > MAX_OPEN
            or sum(kept.memory for kept in self._sources.values()) > CACHE_BYTES
        ):
            self._sources.popitem(last=False)
        return source

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_sources": OrderedDict()}

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def keys(self) -> list[str]:
        """The keys of all samples, in order."""
        return [index.name(i) for index in self._indexes for i in range(len(index))]

    def read(self, i: int) -> tuple[str, dict[str, bytes]]:
        """Key and members {extension: bytes} of sample ``i``.

        Raises:
            SelfdistillError: the shard is gone, or shorter than it was.
        """
        if not 0 <= i < len(self):
            raise IndexError(i)
        shard = int(np.searchsorted(self._starts, i, side="right")) - 1
        index = self._indexes[shard]
        place = i - int(self._starts[shard])
        source = self._source(shard)
        extensions = (*self.extensions, LABEL)
        members: dict[str, bytes] = {}
        for member in index.members[index.first[place] : index.first[place + 1]]:
            data = source.read(int(member["offset"]), int(member["size"]))
            if len(data) < member["size"]:
                raise SelfdistillError(
                    f"{self.key}: shard '{source.path}' is shorter than when the run started; "
                    "shards must not change while they are read"
                )
            members[extensions[member["extension"]]] = data
        return index.name(place), members
