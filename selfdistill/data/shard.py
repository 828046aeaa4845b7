"""One shard of a list: a file of this machine, or one elsewhere."""

import os
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
from tqdm import tqdm

from selfdistill.data.headers import list_tar
from selfdistill.data.locations import SAMPLES
from selfdistill.data.sidecar import (
    SIDECAR_BYTES,
    SUFFIX,
    BadSidecar,
    Sidecar,
    encode_sidecar,
    read_sidecar,
)
from selfdistill.data.sources import (
    GZIP,
    FileSource,
    TarSource,
    changed,
    identity,
    open_file,
    unreadable,
)
from selfdistill.data.tarindex import BLOCK, Contents, TarIndex
from selfdistill.durable import write_atomically
from selfdistill.errors import UserError

PROGRESS_FROM = 8
"""Shards from which on indexing shows a progress bar."""
THREADS = 16
"""Indexes that are looked for at the same time."""


class Unusable(Exception):
    """Why a file that is there and can be read is of no use as a shard."""


class UnusableShard(UserError):
    """A file that is there and can be read, but is no shard, or has no sample of use."""


class Shard(ABC):
    """One shard of a list; it may be pickled and forked.

    Attributes:
        name: of the file.
        shown: in messages.
        is_here: whether it is on this machine.
    """

    name: str
    shown: str
    is_here: bool = True

    @abstractmethod
    def learn(self, extensions: Sequence[str]) -> Sidecar | None:
        """What an index says of it; None: there is none. Called first, in any thread.

        Raises:
            BadSidecar: there is one that cannot be used.
            SelfdistillError: the shard cannot be had.
        """

    @abstractmethod
    def open(self) -> TarSource:
        """Its bytes, once it is known; raises ``SelfdistillError`` where it is not what it was."""

    def walk(self, source: TarSource) -> Contents:
        """Read all headers of what ``open`` gave."""
        return list_tar(source)

    @abstractmethod
    def is_good(self, source: TarSource) -> bool:
        """Whether what ``open`` gave still has the bytes that it had; asked when it is read again
        after others."""

    @abstractmethod
    def state(self) -> str:
        """Tells this state of the file from others, of any file; empty: nothing does."""

    def kept_lengths(self, extensions: Sequence[str]) -> np.ndarray | None:
        """What ``keep_lengths`` of any process has kept; None: nothing."""
        return None

    def keep_lengths(self, lengths: np.ndarray, extensions: Sequence[str]) -> bool:
        """Put the lengths of the samples with ``extensions`` into the index beside it, float32 [n].

        Returns:
            Whether they are there now.
        """
        return False

    def fetch_ahead(self) -> bool:
        """Begin to bring it here, if it is not; never raises. False: it is not its turn yet."""
        return True


class LocalShard(Shard):
    """A file of this machine; see ``Shard``."""

    def __init__(self, path: Path, key: str) -> None:
        self.path = path
        self.key = key
        self.name, self.shown = path.name, str(path)
        self._identity = (-1, -1, -1)
        self._beside = path.with_name(path.name + SUFFIX)

    def learn(self, extensions: Sequence[str]) -> Sidecar | None:
        try:
            self._identity = identity(os.stat(self.path))
        except OSError as error:
            raise unreadable(self.key, self.path, error) from error
        return self._sidecar(extensions)

    def _sidecar(self, extensions: Sequence[str]) -> Sidecar | None:
        try:
            if os.path.getsize(self._beside) > SIDECAR_BYTES:
                raise BadSidecar("it is too large")
            content = self._beside.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise BadSidecar(f"it cannot be read: {error.strerror}") from error
        sidecar = read_sidecar(content, extensions)
        check_size(sidecar, self._identity[0])
        try:
            self._check_headers(sidecar.index)
        except OSError as error:
            raise unreadable(self.key, self.path, error) from error
        return sidecar

    def _check_headers(self, index: TarIndex) -> None:
        """Refuse an index left over from an earlier shard that was as large."""
        ends = ((0, 0), (len(index) - 1, -1)) if len(index) else ()
        with open(self.path, "rb") as file:
            if file.read(len(GZIP)) == GZIP:
                return
            for sample, member in ends:
                _, offset, size = index.places(sample)[member]
                file.seek(offset - BLOCK)
                with suppress(tarfile.HeaderError):
                    header = tarfile.TarInfo.frombuf(file.read(BLOCK), "utf-8", "backslashreplace")
                    if header.size == size and _may_be(header.name, index.name(sample)):
                        continue
                raise BadSidecar("it is that of another shard of the same size")

    def state(self) -> str:
        return f"{self.path.resolve()} {self._identity}"

    def kept_lengths(self, extensions: Sequence[str]) -> np.ndarray | None:
        with suppress(BadSidecar):
            found = self._sidecar(extensions)
            return None if found is None else found.lengths
        return None

    def keep_lengths(self, lengths: np.ndarray, extensions: Sequence[str]) -> bool:
        if SAMPLES in self.path.parents:
            return False
        try:
            before = self._sidecar(extensions)
        except BadSidecar:
            return False
        source = self.open()
        contents = list_tar(source)
        _, chosen = contents.select(extensions)
        if chosen.sum() != len(lengths) or (before is not None and before.lengths is not None):
            return False  # it would be said of other samples than it was
        every = np.full(len(contents), np.nan, np.float32)
        every[chosen] = lengths
        content = encode_sidecar(
            contents,
            size=self._identity[0],
            tar_size=source.size,
            digest="" if before is None else before.sha256,
            lengths=every,
        )
        with suppress(OSError):
            write_atomically(self._beside, content)
            return True
        return False

    def open(self) -> TarSource:
        source = open_file(self.path, self.key)
        if source.identity() != self._identity:
            raise changed(self.key, self.shown)
        return source

    def is_good(self, source: TarSource) -> bool:
        assert isinstance(source, FileSource)
        return bool(source.memory) or source.identity() == self._identity


def _may_be(name: str, key: str) -> bool:
    """Whether a header with this name may be of a member of the sample. What is long or no ASCII
    stands elsewhere, and here in part."""
    is_told = name.isascii() and "?" not in name and len(name) < tarfile.LENGTH_NAME
    return not is_told or name.startswith(f"{key}.")


def check_use(index: TarIndex, extensions: Sequence[str]) -> None:
    """Refuse a shard without a sample that has a member with one of ``extensions``."""
    if not len(index):
        why = "; ".join(index.faults) or f"found: {', '.join(index.others) or 'no file'}"
        wanted = ", ".join("." + e for e in extensions)
        raise Unusable(f"has no sample with a member {wanted} ({why})")


def check_size(sidecar: Sidecar, size: int | None) -> None:
    """Refuse an index of a shard of another size; None: the size is not known."""
    if size is not None and sidecar.size != size:
        raise BadSidecar(f"it is that of {sidecar.size:,} bytes, the shard has {size:,}")


def learn_all(
    shards: Sequence[Shard], extensions: Sequence[str], unfit: list[str]
) -> Iterator[Sidecar | None]:
    """``learn`` of several; None, too, where an index cannot be used, which ``unfit`` is told."""

    def learn(shard: Shard) -> Sidecar | None:
        try:
            return shard.learn(extensions)
        except BadSidecar as error:
            unfit.append(f"{shard.name}: {error}")
            return None

    few = len(shards) < PROGRESS_FROM and all(shard.is_here for shard in shards)
    hidden = True if few else None  # None: only on a terminal
    pool = ThreadPoolExecutor(THREADS)
    try:
        found = pool.map(learn, shards)
        yield from tqdm(found, "indexing shards", len(shards), disable=hidden)
    finally:
        pool.shutdown(cancel_futures=True)
