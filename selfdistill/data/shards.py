"""Tar shards, read by sample number."""

import logging
import tarfile
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from selfdistill.config import DataConfig
from selfdistill.data.elsewhere.address import Access, Remote
from selfdistill.data.elsewhere.fetch import Fetcher, RemoteShard
from selfdistill.data.lengths import complete
from selfdistill.data.locations import Location, resolve
from selfdistill.data.shard import (
    LocalShard,
    Shard,
    Unusable,
    UnusableShard,
    check_use,
    learn_all,
)
from selfdistill.data.sources import UNREAD, TarSource, changed
from selfdistill.data.tarindex import LABEL, TarIndex
from selfdistill.errors import UserError

TRAIN = "data.train"
CACHE_BYTES = 2 << 30
"""Decompressed shards that one process keeps; the one being read is always kept."""
MAX_OPEN = 128
MAX_BORROWED = 2
"""Of the open ones, copies in the cache: what is open takes space even when it has been dropped."""
NAMED = 20
"""Shards left out that a warning names."""

log = logging.getLogger(__name__)


class ShardSet:
    """The samples of a list of tar shards, by number, in the order of the shards.

    What is in a shard is known when this is made: from the index beside it where there is one that
    fits (see ``sidecar``), else from all its headers. Gzip shards are decompressed into memory,
    once per process as long as they fit together into ``CACHE_BYTES``. It may be pickled or forked
    into any number of processes.

    Args:
        locations: the shards, as from ``resolve``.
        extensions: members to read (lower case, no dot), beside the label ``cls``. Samples without
            any of them are left out.
        key: the config's name of ``locations``, for the error messages.
        access: how shards elsewhere are reached and kept; None: the defaults.
        skip_bad: leave out shards that are no tar or have no sample, as if they were not named.
        quiet: warn of nothing, because the same shards are opened again for good.

    Attributes:
        names: file name of each shard.
        sizes: samples of each shard.
        faults: (shard, what is wrong with it), such as a truncated end.
        skipped: samples left out.
        indexes: what is in each shard.
        left_out: (shard, why), of those that ``skip_bad`` left out.

    Raises:
        UnusableShard: a shard is no tar, or has no sample; with ``skip_bad``: all of them.
        UserError: a shard cannot be read.
        SelfdistillError: a shard elsewhere could not be reached.
    """

    def __init__(
        self,
        locations: Sequence[Location],
        extensions: Sequence[str],
        key: str = TRAIN,
        access: Access | None = None,
        skip_bad: bool = False,
        quiet: bool = False,
    ) -> None:
        if not locations:
            raise UserError(f"{key}: is empty; give the paths of tar shards")
        self.extensions = tuple(e for e in dict.fromkeys(extensions) if e != LABEL)
        self.key = key
        self._access = access or Access.of(DataConfig())
        shards = _shards(locations, key, self._access)
        self._sources: OrderedDict[int, TarSource] = OrderedDict()
        self._ahead = -1
        self._shards: list[Shard] = []
        self.indexes: list[TarIndex] = []
        self._lengths: list[np.ndarray] = []
        self.left_out: list[tuple[str, str]] = []
        unfit: list[str] = []
        for shard, sidecar in zip(shards, learn_all(shards, self.extensions, unfit), strict=True):
            self._shards.append(shard)
            try:
                index = self._walk() if sidecar is None else sidecar.index
                check_use(index, self.extensions)
            except Unusable as error:
                self.left_out.append((shard.shown, str(error)))
                if not skip_bad or len(self.left_out) == len(shards):
                    raise self._unusable() from error
                self._sources.pop(len(self._shards) - 1, None)
                self._shards.pop()
                continue
            lengths = None if sidecar is None else sidecar.lengths
            unknown = np.full(len(index), np.nan, np.float32)
            self.indexes.append(index)
            self._lengths.append(unknown if lengths is None else lengths)
        self.names = [shard.name for shard in self._shards]
        self.sizes = [len(index) for index in self.indexes]
        self._starts = np.array([0, *accumulate(self.sizes)])
        self.skipped = sum(index.skipped for index in self.indexes)
        self.faults = [
            (name, fault)
            for name, index in zip(self.names, self.indexes, strict=True)
            for fault in index.faults
        ]
        if not quiet:
            self._warn_of_all(unfit)

    def _warn_of_all(self, unfit: Sequence[str]) -> None:
        self._warn("indexes beside the shards cannot be used; the headers are read instead", unfit)
        self._warn("faults in the shards", [f"{name}: {fault}" for name, fault in self.faults])
        left_out = [f"'{name}' {why}" for name, why in self.left_out]
        total = len(self._shards) + len(left_out)
        self._warn(f"of {total} shards cannot be used and are left out", left_out, NAMED)

    def _warn(self, what: str, found: Sequence[str], most: int = 5) -> None:
        if found:
            more = f"; and {len(found) - most} more" if len(found) > most else ""
            said = "; ".join(found[:most]) + more
            log.warning("%s: %d %s: %s", self.key, len(found), what, said)

    def _walk(self) -> TarIndex:
        """Read all headers of the last shard."""
        shard, source = self._shards[-1], self._source(len(self._shards) - 1)
        try:
            contents = shard.walk(source)
        except tarfile.TarError as error:
            start = source.read(0, max(map(len, UNREAD)))
            for magic, program in UNREAD.items():
                if start.startswith(magic):
                    raise Unusable(
                        "is not a tar file, but compressed in another way than gzip's "
                        f"({program} -d unpacks it)"
                    ) from error
            raise Unusable(f"is not a tar file ({error})") from error
        return contents.select(self.extensions)[0]

    def _unusable(self) -> UnusableShard:
        """The error of the first shard that cannot be used."""
        shown, why = self.left_out[0]
        ways = "make it again, or take it out of the list"
        if self.key == TRAIN:
            ways = "make it again, take it out of the list, or set data.skip_bad_shards=true"
        return UnusableShard(f"{self.key}: shard '{shown}' {why}; {ways}")

    def _source(self, number: int) -> TarSource:
        if self._sources and next(reversed(self._sources)) == number:
            return self._sources[number]
        shard = self._shards[number]
        source = self._sources.pop(number, None)
        if source is not None and not shard.is_good(source):
            raise changed(self.key, shard.shown)
        source = source or shard.open()
        self._sources[number] = source  # the newest last
        while len(self._sources) > 1 and (
            len(self._sources) > MAX_OPEN
            or sum(kept.memory for kept in self._sources.values()) > CACHE_BYTES
        ):
            self._sources.popitem(last=False)
        borrowed = [number for number, kept in self._sources.items() if kept.borrowed]
        for oldest in borrowed[:-MAX_BORROWED]:
            del self._sources[oldest]
        return source

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_sources": OrderedDict()}

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def keys(self) -> list[str]:
        """The keys of all samples, in order."""
        return [index.name(i) for index in self.indexes for i in range(len(index))]

    def read(self, i: int) -> tuple[str, dict[str, bytes]]:
        """Key and members {extension: bytes} of sample ``i``.

        Raises:
            SelfdistillError: the shard is gone, is another one than it was, or cannot be reached.
        """
        number, place = self._place(i)
        index = self.indexes[number]
        return index.name(place), self._members(number, index.places(place))

    def read_label(self, i: int) -> bytes | None:
        """The ``cls`` member of sample ``i``; None: it has none. Raises as ``read`` does."""
        number, place = self._place(i)
        label = len(self.extensions)
        places = [found for found in self.indexes[number].places(place) if found[0] == label]
        return self._members(number, places).get(LABEL) if places else None

    def _members(self, number: int, places: Sequence[tuple[int, int, int]]) -> dict[str, bytes]:
        found = self._source(number).read_all([(offset, size) for _, offset, size in places])
        extensions = (*self.extensions, LABEL)
        members: dict[str, bytes] = {}
        for (extension, _, size), data in zip(places, found, strict=True):
            if len(data) < size:
                raise changed(self.key, self._shards[number].shown)
            members[extensions[extension]] = data
        return members

    def member_bytes(self) -> np.ndarray:
        """Bytes of all members of every sample, int64 [n]."""
        parts = [
            np.add.reduceat(index.members["size"].astype(np.int64), index.first[:-1])
            for index in self.indexes
        ]
        return np.concatenate(parts)

    @property
    def is_here(self) -> bool:
        """Whether all shards are on this machine."""
        return all(shard.is_here for shard in self._shards)

    def prefetch(self, i: int) -> None:
        """Begin to bring the shard of sample ``i`` here where it is elsewhere; returns at once and
        never raises."""
        number, _ = self._place(i)
        if number != self._ahead and self._shards[number].fetch_ahead():
            self._ahead = number

    def known_lengths(self) -> np.ndarray:
        """What indexes tell of the length of every sample, float32 [n]; NaN where they do not."""
        return np.concatenate(self._lengths)

    def lengths(self, measure: Callable[[Mapping[str, bytes]], float]) -> np.ndarray:
        """The length of every sample, float32 [n]; 0 where there is none that can be told.

        Args:
            measure: members of a sample to its length, for those that no index tells; raises
                ``BadSample``. What it finds is kept for the next time.

        Raises:
            SelfdistillError: see ``read``.
        """
        parts = [*self._lengths]
        complete(
            parts,
            self._shards,
            self.extensions,
            lambda i: measure(self.read(i)[1]),
            self._access.cache_folder,
        )
        return np.concatenate(parts)

    def _place(self, i: int) -> tuple[int, int]:
        """Which shard sample ``i`` is in, and which of its samples it is."""
        if not 0 <= i < len(self):
            raise IndexError(i)
        number = int(np.searchsorted(self._starts, i, side="right")) - 1
        return number, i - int(self._starts[number])


def open_shards(
    patterns: Sequence[str], extensions: Sequence[str], access: Access, key: str = TRAIN
) -> ShardSet:
    """The samples of the shards that a config names; see ``resolve`` and ``ShardSet``."""
    return ShardSet(resolve(patterns, key, access), extensions, key, access)


def training_shards(config: DataConfig, extensions: Sequence[str]) -> ShardSet:
    """The samples that a run trains on; raises as ``resolve`` and ``ShardSet`` do."""
    access = Access.of(config)
    locations = resolve(config.train, access=access)
    return ShardSet(locations, extensions, access=access, skip_bad=config.skip_bad_shards)


def _shards(locations: Sequence[Location], key: str, access: Access) -> list[Shard]:
    fetcher = None
    found: list[Shard] = []
    for location in locations:
        if isinstance(location, Remote):
            fetcher = fetcher or Fetcher(key, access)
            found.append(RemoteShard(location, fetcher))
        else:
            found.append(LocalShard(Path(location), key))
    return found
