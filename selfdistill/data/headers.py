"""The headers of a tar, read without unpacking anything to disk.

Every limit here guards against a file that is not what it seems: nothing is written, no link is
followed, and no size that a file merely claims is believed.
"""

import io
import tarfile
from collections.abc import Iterator

import numpy as np
from webdataset.tariterators import base_plus_ext

from selfdistill.data.sources import CUT_GZIP, TarSource
from selfdistill.data.tarindex import BLOCK, MEMBER_BYTES, Contents, Faults, starts

HEADER_BYTES = 1 << 20
TAIL_BYTES = 1 << 20
"""That are looked at behind the last member; tar pads its files with zeros to records of less."""


class _Headers(io.RawIOBase):
    """A ``TarSource`` as the file that tarfile reads headers from, none of them of absurd size."""

    def __init__(self, source: TarSource) -> None:
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


def _members(source: TarSource, faults: Faults) -> Iterator[tarfile.TarInfo]:
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
            is_plain = member.isreg() and not member.issparse()  # sparse: its size unpacked
            if is_plain and last + member.size > source.size:
                raise tarfile.ReadError(f"'{member.name}' is cut off")
            if _usable(member, faults):
                yield member
        # tarfile takes a broken header for the end, but the end is a block of zeros
        left = max(source.size - archive.offset, 0)
        tail = source.read(archive.offset, min(left, TAIL_BYTES))
        if tail[:BLOCK] != bytes(BLOCK):
            raise tarfile.ReadError("no end-of-archive mark after the last whole member")
        if more := tail.lstrip(b"\0"):
            count = left - len(tail) + len(more)
            faults.add(
                f"{count:,} bytes behind the end-of-archive mark are not read; tar --concatenate "
                "joins tar files, cat does not"
            )
    except tarfile.TarError as error:
        faults.cut = source.fault or f"truncated or corrupt: {error}; the rest is not read"
        faults.add(faults.cut)


def list_tar(source: TarSource) -> Contents:
    """Find all samples of a shard by reading every header.

    Raises:
        tarfile.TarError: this is no tar.
    """
    faults = Faults()
    if source.fault:
        faults.add(source.fault)
    numbers: dict[str, int] = {}
    samples: dict[str, dict[int, tuple[int, int]]] = {}
    repeated: dict[int, tuple[int, str]] = {}
    for member in _members(source, faults):
        key, extension = base_plus_ext(member.name)
        if not key:
            faults.add("hidden files and those without an extension are skipped", member.name)
            continue
        number = numbers.setdefault(extension.lower(), len(numbers))
        sample = samples.setdefault(key, {})
        if number in sample:
            count, first = repeated.get(number, (0, member.name))
            repeated[number] = count + 1, first
        else:
            sample[number] = (member.offset_data // BLOCK, member.size)
    keys = [key.encode("utf-8", "surrogateescape") for key in samples]
    places = [(n, *place) for found in samples.values() for n, place in found.items()]
    extension, block, size = zip(*places, strict=True) if places else ((), (), ())
    return Contents(
        names=np.frombuffer(b"".join(keys), np.uint8),
        name_ends=np.cumsum([len(key) for key in keys], dtype=np.uint32),
        first=starts([len(found) for found in samples.values()]),
        extension=np.array(extension, np.uint32),
        block=np.array(block, np.uint32),
        size=np.array(size, np.int32),
        extensions=list(numbers),
        repeated=[(number, count, name) for number, (count, name) in repeated.items()],
        faults=faults.reasons(),
    )


def cut_off(source: TarSource) -> str:
    """Why there may be more of a tar than there is; empty: it has its end, or this is no tar."""
    if source.fault:  # gzip data that is corrupt or too large would be so again
        return source.fault if source.fault == CUT_GZIP else ""
    faults = Faults()
    try:
        for _ in _members(source, faults):
            pass
    except tarfile.TarError as error:
        return f"truncated: {error}" if source.size < BLOCK else ""
    return faults.cut
