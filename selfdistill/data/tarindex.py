"""Where the samples of one tar file are, found without unpacking anything to disk.

Samples are grouped the WebDataset way: the key is the path up to the first dot of the file name,
the rest is the extension. Because the members are indexed before any is read, those of one sample
need not lie side by side. Every limit here guards against a file that is not what it seems:
nothing is written, no link is followed, and no size that a file merely claims is believed.
"""

import io
import os
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from webdataset.tariterators import base_plus_ext

from selfdistill.errors import SelfdistillError, UserError

LABEL = "cls"
"""The extension of a sample's class, kept beside those that are asked for."""

MEMBER_BYTES = 1 << 30
SHARD_BYTES = 4 << 30
HEADER_BYTES = 1 << 20
CHUNK = 1 << 20
MEMBER = np.dtype([("extension", "u1"), ("offset", "i8"), ("size", "i4")])


class Source:
    """The bytes of one shard: of the file itself, or what a gzip file holds, kept in memory.

    Attributes:
        size: bytes of the tar.
        memory: bytes of memory that it takes.
        fault: why the tar is not whole, empty if it is.

    Raises:
        UserError: the file cannot be opened.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path = path
        self.fault = ""
        self._data = None
        self._descriptor = -1
        try:
            self._descriptor = os.open(path, os.O_RDONLY)
            self.size = os.fstat(self._descriptor).st_size
            # by content, because the name may lie
            if os.pread(self._descriptor, 2, 0) == b"\x1f\x8b":
                self._data, self.fault = _inflate(path)
                self.size = len(self._data)
        except OSError as error:
            raise UserError(f"{key}: cannot read shard '{path}': {error.strerror}") from error
        self.memory = self.size if self._data is not None else 0

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def read(self, offset: int, size: int) -> bytes:
        """Bytes from ``offset``; fewer than ``size`` only at the end.

        ``pread`` leaves no file position behind that forked workers would share.
        """
        if self._data is not None:
            return bytes(memoryview(self._data)[offset : offset + size])
        try:
            return os.pread(self._descriptor, size, offset)
        except OSError as error:
            message = f"cannot read shard '{self.path}': {error.strerror}"
            raise SelfdistillError(message) from error


def _inflate(path: Path) -> tuple[bytearray, str]:
    """What a gzip file holds up to its first fault or ``SHARD_BYTES``, and the fault."""
    data = bytearray()
    stream = zlib.decompressobj(wbits=31)
    with path.open("rb") as file:
        tail = b""
        while True:
            compressed = tail or file.read(CHUNK)
            if stream.eof:
                if not compressed:
                    return data, ""
                stream = zlib.decompressobj(wbits=31)  # gzip files may follow each other
            try:
                out = stream.decompress(compressed, CHUNK)
            except zlib.error as error:
                return data, f"corrupt gzip data ({error}); the rest is not read"
            data += out
            if len(data) > SHARD_BYTES:
                return data, f"holds more than {SHARD_BYTES:,} bytes; the rest is not read"
            if not compressed and not out:
                return data, "truncated in the middle of the gzip data"
            tail = stream.unused_data if stream.eof else stream.unconsumed_tail


class _Headers(io.RawIOBase):
    """A ``Source`` as the file that tarfile reads headers from, none of them of absurd size."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._position = 0

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        found = self._source.read(self._position, size)
        self._position += len(found)
        return found

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence != io.SEEK_SET or offset < 0:
            raise tarfile.ReadError(f"a header at {offset:,}")
        self._position = offset
        return offset

    def tell(self) -> int:
        return self._position


class Faults:
    """Faults of one shard, equal ones counted together."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, str]] = {}

    def add(self, reason: str, name: str = "") -> None:
        count, first = self._found.get(reason, (0, name))
        self._found[reason] = count + 1, first

    def reasons(self) -> list[str]:
        return [
            f"{reason} ({count} members, first '{first}')" if first else reason
            for reason, (count, first) in self._found.items()
        ]


@dataclass(frozen=True)
class TarIndex:
    """The samples of one shard in the order of their first members.

    Attributes:
        names: the keys, one after the other.
        name_ends: int64 [n], where each key ends in ``names``.
        first: int64 [n + 1]; sample i owns ``members[first[i]:first[i + 1]]``.
        members: ``MEMBER`` [m].
        skipped: samples that have no wanted member.
        others: some of the extensions that were not wanted.
        faults: what is wrong with the shard.
    """

    names: bytes
    name_ends: np.ndarray
    first: np.ndarray
    members: np.ndarray
    skipped: int
    others: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.name_ends)

    def name(self, i: int) -> str:
        start = int(self.name_ends[i - 1]) if i else 0
        return self.names[start : int(self.name_ends[i])].decode("utf-8", "backslashreplace")


def _usable(member: tarfile.TarInfo, faults: Faults) -> bool:
    if member.isdir():
        return False
    if not member.isreg() or member.issparse():
        faults.add("links, devices and sparse files are skipped", member.name)
    elif member.name.startswith("/") or ".." in member.name.split("/"):
        faults.add("paths that lead out of the shard are skipped", member.name)
    elif member.size > MEMBER_BYTES:
        faults.add(f"members above {MEMBER_BYTES:,} bytes are skipped", member.name)
    else:
        return True
    return False


def _members(source: Source, faults: Faults) -> Iterator[tarfile.TarInfo]:
    """The regular files whose bytes are all there.

    Raises:
        tarfile.TarError: this is no tar.
    """
    archive = tarfile.TarFile(fileobj=_Headers(source), encoding="utf-8")
    last = -1
    try:
        while (member := archive.next()) is not None:
            archive.members = []  # type: ignore[attr-defined]  # it would keep every header
            if member.size < 0 or member.offset_data <= last:
                raise tarfile.ReadError("a header that points backwards")
            last = member.offset_data
            if member.isreg() and last + member.size > source.size:
                raise tarfile.ReadError(f"'{member.name}' is cut off")
            if _usable(member, faults):
                yield member
        # tarfile takes a broken header for the end, but the end is a block of zeros
        if source.read(archive.offset, tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("no end-of-archive mark after the last whole member")
    except tarfile.TarError as error:
        faults.add(source.fault or f"truncated or corrupt: {error}; the rest is not read")


def index_tar(source: Source, extensions: Sequence[str]) -> TarIndex:
    """Find the samples that have a member with one of ``extensions``.

    Args:
        source: the shard.
        extensions: lower case, no dot; members with other extensions are left out, except the
            label.

    Raises:
        tarfile.TarError: this is no tar.
    """
    faults = Faults()
    if source.fault:
        faults.add(source.fault)
    number = {extension: i for i, extension in enumerate((*extensions, LABEL))}
    samples: dict[str, dict[int, tuple[int, int]]] = {}
    others: set[str] = set()
    for member in _members(source, faults):
        key, extension = base_plus_ext(member.name)
        if not key:
            continue
        extension = extension.lower()
        sample = samples.setdefault(key, {})
        if extension not in number:
            others.add(extension)
            if extension.rpartition(".")[2] in number:
                faults.add(
                    "skipped for a dot in the name: the extension starts at the first dot of the "
                    "file name, so rename them without other dots",
                    member.name,
                )
        elif number[extension] in sample:
            faults.add("duplicates of an earlier member are skipped", member.name)
        else:
            sample[number[extension]] = (member.offset_data, member.size)
    label = number[LABEL]
    kept = {key: found for key, found in samples.items() if any(i != label for i in found)}
    encoded = [key.encode("utf-8", "surrogateescape") for key in kept]
    return TarIndex(
        names=b"".join(encoded),
        name_ends=np.cumsum([len(name) for name in encoded], dtype=np.int64),
        first=np.cumsum([0, *(len(found) for found in kept.values())], dtype=np.int64),
        members=np.array(
            [(i, *place) for found in kept.values() for i, place in found.items()], dtype=MEMBER
        ),
        skipped=len(samples) - len(kept),
        others=sorted(others)[:8],
        faults=faults.reasons(),
    )
