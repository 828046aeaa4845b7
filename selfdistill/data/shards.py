"""Tar shards, read by sample number."""

import logging
import tarfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from selfdistill.config import DataConfig
from selfdistill.data.elsewhere.address import Access, Remote
from selfdistill.data.elsewhere.fetch import Fetcher, RemoteShard
from selfdistill.data.locations import Location, resolve
from selfdistill.data.shard import LocalShard, Shard
from selfdistill.data.sidecar import BadSidecar, Sidecar
from selfdistill.data.sources import Source, changed
from selfdistill.data.tarindex import LABEL, TarIndex
from selfdistill.errors import BadSample, UserError

CACHE_BYTES = 2 << 30
"""Decompressed shards that one process keeps; the one being read is always kept."""
MAX_OPEN = 128
MAX_BORROWED = 2
"""Of the open ones, copies in the cache: what is open takes space even when it has been dropped."""
PROGRESS_FROM = 8
"""Shards from which on indexing shows a progress bar."""
THREADS = 16
"""Indexes that are looked for at the same time."""

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

    Attributes:
        names: file name of each shard.
        sizes: samples of each shard.
        faults: (shard, what is wrong with it), such as a truncated end.
        skipped: samples left out.

    Raises:
        UserError: a shard cannot be read, is no tar, or has no sample.
        SelfdistillError: a shard elsewhere could not be reached.
    """

    def __init__(
        self,
        locations: Sequence[Location],
        extensions: Sequence[str],
        key: str = "data.train",
        access: Access | None = None,
    ) -> None:
        if not locations:
            raise UserError(f"{key}: is empty; give the paths of tar shards")
        self.extensions = tuple(e for e in dict.fromkeys(extensions) if e != LABEL)
        self.key = key
        self._shards = _shards(locations, key, access or Access.of(DataConfig()))
        self.names = [shard.name for shard in self._shards]
        self._sources: OrderedDict[int, Source] = OrderedDict()
        self._ahead = -1
        self._indexes: list[TarIndex] = []
        self._lengths: list[np.ndarray | None] = []
        for number, sidecar in enumerate(self._sidecars()):
            index = self._walk(number) if sidecar is None else sidecar.index
            self._indexes.append(self._checked(number, index))
            self._lengths.append(None if sidecar is None else sidecar.lengths)
        self.sizes = [len(index) for index in self._indexes]
        self._starts = np.array([0, *accumulate(self.sizes)])
        self.skipped = sum(index.skipped for index in self._indexes)
        self.faults = [
            (name, fault)
            for name, index in zip(self.names, self._indexes, strict=True)
            for fault in index.faults
        ]
        self._warn("faults in the shards", [f"{name}: {fault}" for name, fault in self.faults])

    def _warn(self, what: str, found: Sequence[str]) -> None:
        if found:
            log.warning("%s: %d %s: %s", self.key, len(found), what, "; ".join(found[:5]))

    def _sidecars(self) -> Iterator[Sidecar | None]:
        """What is known of each shard without reading it."""
        unfit: list[str] = []

        def learn(shard: Shard) -> Sidecar | None:
            try:
                return shard.learn(self.extensions)
            except BadSidecar as error:
                unfit.append(f"{shard.name}: {error}")
                return None

        few = len(self._shards) < PROGRESS_FROM and all(s.is_here for s in self._shards)
        hidden = True if few else None  # None: only on a terminal
        pool = ThreadPoolExecutor(THREADS)
        try:
            found = pool.map(learn, self._shards)
            yield from tqdm(found, "indexing shards", len(self._shards), disable=hidden)
        finally:
            pool.shutdown(cancel_futures=True)
        self._warn("indexes beside the shards cannot be used; the headers are read instead", unfit)

    def _walk(self, number: int) -> TarIndex:
        shard = self._shards[number]
        try:
            contents = shard.walk(self._source(number))
        except tarfile.TarError as error:
            raise UserError(
                f"{self.key}: shard '{shard.shown}' is not a tar file ({error}); make it again, or "
                "take it out of the list"
            ) from error
        return contents.select(self.extensions)[0]

    def _checked(self, number: int, index: TarIndex) -> TarIndex:
        if not len(index):
            why = "; ".join(index.faults) or f"found: {', '.join(index.others) or 'no file'}"
            raise UserError(
                f"{self.key}: shard '{self._shards[number].shown}' has no sample with a member "
                f"{', '.join('.' + e for e in self.extensions)} ({why}); make it again, or take it "
                "out of the list"
            )
        return index

    def _source(self, number: int) -> Source:
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
        return [index.name(i) for index in self._indexes for i in range(len(index))]

    def read(self, i: int) -> tuple[str, dict[str, bytes]]:
        """Key and members {extension: bytes} of sample ``i``.

        Raises:
            SelfdistillError: the shard is gone, is another one than it was, or cannot be reached.
        """
        number, place = self._place(i)
        index = self._indexes[number]
        places = index.places(place)
        found = self._source(number).read_all([(offset, size) for _, offset, size in places])
        extensions = (*self.extensions, LABEL)
        members: dict[str, bytes] = {}
        for (extension, _, size), data in zip(places, found, strict=True):
            if len(data) < size:
                raise changed(self.key, self._shards[number].shown)
            members[extensions[extension]] = data
        return index.name(place), members

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

    def lengths(self, measure: Callable[[Mapping[str, bytes]], float]) -> np.ndarray:
        """The length of every sample, float32 [n]; 0 where there is none that can be told.

        Args:
            measure: members of a sample to its length, for those that no index tells; raises
                ``BadSample``.

        Raises:
            SelfdistillError: see ``read``.
        """
        known = [
            np.full(size, np.nan, np.float32) if lengths is None else lengths
            for size, lengths in zip(self.sizes, self._lengths, strict=True)
        ]
        found = np.concatenate(known)
        unknown = np.flatnonzero(~((found >= 0) & (found < np.inf)))
        hidden = None if len(unknown) else True
        for i in tqdm(unknown, "measuring samples", disable=hidden):
            try:
                found[i] = measure(self.read(int(i))[1])
            except BadSample:
                found[i] = 0
        return found

    def _place(self, i: int) -> tuple[int, int]:
        """Which shard sample ``i`` is in, and which of its samples it is."""
        if not 0 <= i < len(self):
            raise IndexError(i)
        number = int(np.searchsorted(self._starts, i, side="right")) - 1
        return number, i - int(self._starts[number])


def open_shards(
    patterns: Sequence[str], extensions: Sequence[str], access: Access, key: str = "data.train"
) -> ShardSet:
    """The samples of the shards that a config names; see ``resolve`` and ``ShardSet``."""
    return ShardSet(resolve(patterns, key, access), extensions, key, access)


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
