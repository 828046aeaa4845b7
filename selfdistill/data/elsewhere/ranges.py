"""Shards elsewhere that are read part by part, without being kept."""

from collections.abc import Sequence

from selfdistill.data.elsewhere.remote import PART, RemoteFile
from selfdistill.data.elsewhere.transport import Stamp
from selfdistill.data.sources import GZIP, MemorySource, TarSource, inflate

GAP = 64 << 10
"""Bytes between two places below which both are asked for together."""


def open_ranges(file: RemoteFile, stamp: Stamp) -> TarSource:
    """The source of a shard elsewhere in the state ``stamp``, which says that it has parts; raises
    as ``RemoteFile`` does."""
    file.check(stamp)
    if file.part(0, min(len(GZIP), stamp.size or 0), stamp) == GZIP:
        return MemorySource(*inflate(file.parts(stamp)), str(file.remote))
    return RangeSource(file, stamp)


class RangeSource(TarSource):
    """A tar elsewhere; every read is a request."""

    def __init__(self, file: RemoteFile, stamp: Stamp) -> None:
        self._file = file
        self._stamp = stamp
        self.shown = str(file.remote)
        self.size = stamp.size or 0

    def read(self, offset: int, size: int) -> bytes:
        stop = min(offset + size, self.size)
        return self._file.part(offset, stop, self._stamp) if offset < stop else b""

    def read_all(self, places: Sequence[tuple[int, int]]) -> list[bytes]:
        first = min(offset for offset, _ in places)
        last = max(offset + size for offset, size in places)
        if last - first > sum(size for _, size in places) + GAP:
            return super().read_all(places)
        found = self.read(first, last - first)
        return [found[offset - first : offset - first + size] for offset, size in places]


class Ahead(TarSource):
    """Another source, read in large pieces by somebody who goes through it in order."""

    def __init__(self, source: TarSource) -> None:
        self._source = source
        self._start, self._piece = 0, b""
        self.shown, self.size, self.fault = source.shown, source.size, source.fault

    def read(self, offset: int, size: int) -> bytes:
        if not self._start <= offset <= offset + size <= self._start + len(self._piece):
            self._start = offset
            self._piece = self._source.read(offset, max(size, PART))
        return self._piece[offset - self._start : offset - self._start + size]
