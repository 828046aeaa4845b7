"""The bytes of one shard's tar, by place: of a file, or what a gzip file holds."""

import os
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from selfdistill.errors import SelfdistillError, UserError

SHARD_BYTES = 4 << 30
CHUNK = 1 << 20
GZIP = b"\x1f\x8b"
"""How gzip data starts; a file's name may lie."""
CUT_GZIP = "truncated in the middle of the gzip data"
"""The fault of gzip data that ends too early."""
UNREAD = {b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
"""How other compressed data starts, and what unpacks it with -d."""

Identity = tuple[int, int, int]
"""Bytes, time of the last change in ns, and inode of a file."""


class TarSource(ABC):
    """The bytes of one shard's tar.

    Attributes:
        shown: the shard's name in messages.
        size: bytes of the tar.
        memory: bytes of memory that it takes.
        fault: why the tar is not whole, empty if it is.
        borrowed: whether it holds disk space that others may be waiting for.
    """

    shown: str
    size: int
    memory: int = 0
    fault: str = ""
    borrowed: bool = False

    @abstractmethod
    def read(self, offset: int, size: int) -> bytes:
        """Bytes from ``offset``; fewer than ``size`` only at the end.

        Raises:
            SelfdistillError: they cannot be read.
        """

    def read_all(self, places: Sequence[tuple[int, int]]) -> list[bytes]:
        """``read`` for several offsets and sizes."""
        return [self.read(offset, size) for offset, size in places]


class FileSource(TarSource):
    """A shard that is an open file; gzip data is decompressed into memory.

    Args:
        descriptor: of the file; closed with the source.
        shown: its name in messages.
        borrowed: see ``TarSource``.

    Raises:
        OSError: it cannot be read.
    """

    def __init__(self, descriptor: int, shown: str, borrowed: bool = False) -> None:
        self._descriptor = descriptor
        self._data = None
        self.shown, self.borrowed = shown, borrowed
        self.size = self.identity()[0]
        if os.pread(descriptor, len(GZIP), 0) == GZIP:
            self._data, self.fault = inflate(self._chunks())
            self.size = self.memory = len(self._data)
            self.borrowed = False

    def __del__(self) -> None:
        os.close(self._descriptor)

    def _chunks(self) -> Iterator[bytes]:
        start = 0
        while chunk := os.pread(self._descriptor, CHUNK, start):
            start += len(chunk)
            yield chunk

    def identity(self) -> Identity:
        """Of the file as it is now."""
        return identity(os.fstat(self._descriptor))

    def touch(self) -> None:
        """Mark the file as used now."""
        os.utime(self._descriptor)

    def read(self, offset: int, size: int) -> bytes:
        if self._data is not None:
            return bytes(memoryview(self._data)[offset : offset + size])
        try:
            # leaves no file position behind that forked workers would share
            return os.pread(self._descriptor, size, offset)
        except OSError as error:
            message = f"cannot read shard '{self.shown}': {error.strerror}"
            raise SelfdistillError(message) from error


def identity(found: os.stat_result) -> Identity:
    """What tells whether a file is the one that it was."""
    return found.st_size, found.st_mtime_ns, found.st_ino


def open_file(path: Path, key: str) -> FileSource:
    """The source of a file of this machine.

    Args:
        key: the config's name of it, for the error messages.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return FileSource(os.open(path, os.O_RDONLY), str(path))
    except OSError as error:
        raise unreadable(key, path, error) from error


def unreadable(key: str, path: Path, error: OSError) -> UserError:
    """The error of a file of this machine that cannot be read."""
    return UserError(f"{key}: cannot read shard '{path}': {error.strerror}")


class MemorySource(TarSource):
    """A shard whose tar is in memory."""

    def __init__(self, data: bytearray, fault: str, shown: str) -> None:
        self._data, self.fault, self.shown = data, fault, shown
        self.size = self.memory = len(data)

    def read(self, offset: int, size: int) -> bytes:
        return bytes(memoryview(self._data)[offset : offset + size])


def inflate(chunks: Iterable[bytes]) -> tuple[bytearray, str]:
    """What gzip data holds up to its first fault or ``SHARD_BYTES``, and the fault.

    Args:
        chunks: the data, none of them empty.
    """
    data = bytearray()
    stream = zlib.decompressobj(wbits=31)
    waiting = iter(chunks)
    tail = b""
    while True:
        compressed = tail or next(waiting, b"")
        if stream.eof:
            if not compressed:
                return data, ""
            # gzip files may follow each other, and zeros may fill up the blocks of a device
            tail = compressed.lstrip(b"\0")
            if not tail:
                continue
            compressed, stream = tail, zlib.decompressobj(wbits=31)
        try:
            out = stream.decompress(compressed, CHUNK)
        except zlib.error as error:
            return data, f"corrupt gzip data ({error}); the rest is not read"
        data += out
        if len(data) > SHARD_BYTES:
            return data, f"holds more than {SHARD_BYTES:,} bytes; the rest is not read"
        if not compressed and not out:
            return data, CUT_GZIP
        tail = stream.unused_data if stream.eof else stream.unconsumed_tail


def changed(key: str, shown: str) -> SelfdistillError:
    """The error of a shard that is another one than when the run started."""
    return SelfdistillError(
        f"{key}: shard '{shown}' is not what it was when the run started; shards must not change "
        "while they are read"
    )
