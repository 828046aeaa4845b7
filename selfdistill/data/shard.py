"""One shard of a list: a file of this machine, or one elsewhere."""

import os
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from selfdistill.data.headers import list_tar
from selfdistill.data.sidecar import SIDECAR_BYTES, SUFFIX, BadSidecar, Sidecar, read_sidecar
from selfdistill.data.sources import GZIP, FileSource, Source, changed, identity, open_file
from selfdistill.data.tarindex import BLOCK, Contents, TarIndex
from selfdistill.errors import UserError


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
    def open(self) -> Source:
        """Its bytes, once it is known; raises ``SelfdistillError`` where it is not what it was."""

    def walk(self, source: Source) -> Contents:
        """Read all headers of what ``open`` gave."""
        return list_tar(source)

    @abstractmethod
    def is_good(self, source: Source) -> bool:
        """Whether what ``open`` gave still has the bytes that it had; asked when it is read again
        after others."""

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

    def learn(self, extensions: Sequence[str]) -> Sidecar | None:
        try:
            self._identity = identity(os.stat(self.path))
        except OSError as error:
            raise UserError(
                f"{self.key}: cannot read shard '{self.path}': {error.strerror}"
            ) from error
        beside = self.path.with_name(self.path.name + SUFFIX)
        try:
            if os.path.getsize(beside) > SIDECAR_BYTES:
                raise BadSidecar("it is too large")
            content = beside.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise BadSidecar(f"it cannot be read: {error.strerror}") from error
        sidecar = read_sidecar(content, extensions)
        check_size(sidecar, self._identity[0])
        self._check_headers(sidecar.index)
        return sidecar

    def _check_headers(self, index: TarIndex) -> None:
        """Refuse an index left over from an earlier shard that was as large."""
        ends = (*index.places(0)[:1], *index.places(len(index) - 1)[-1:]) if len(index) else ()
        with open(self.path, "rb") as file:
            if file.read(len(GZIP)) == GZIP:
                return
            for _, offset, size in ends:
                file.seek(offset - BLOCK)
                with suppress(tarfile.HeaderError):
                    header = tarfile.TarInfo.frombuf(file.read(BLOCK), "utf-8", "surrogateescape")
                    if header.size == size:
                        continue
                raise BadSidecar("it is that of another shard of the same size")

    def open(self) -> Source:
        source = open_file(self.path, self.key)
        if source.identity() != self._identity:
            raise changed(self.key, self.shown)
        return source

    def is_good(self, source: Source) -> bool:
        assert isinstance(source, FileSource)
        return bool(source.memory) or source.identity() == self._identity


def check_size(sidecar: Sidecar, size: int | None) -> None:
    """Refuse an index of a shard of another size; None: the size is not known."""
    if size is not None and sidecar.size != size:
        raise BadSidecar(f"it is that of {sidecar.size:,} bytes, the shard has {size:,}")
