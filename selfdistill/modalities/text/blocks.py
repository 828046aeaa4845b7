"""Text files in blocks of whole documents: plain text, JSON lines and Parquet, compressed or not.

One process reads; others look into the blocks.
"""

import codecs
import gzip
import importlib
import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO

from selfdistill.errors import BadSample, UserError
from selfdistill.modalities.text.documents import (
    REMEDY,
    UTF_16,
    UTF_32,
    Block,
    Ends,
    Kind,
    row_size,
)
from selfdistill.modalities.text.values import there_are
from selfdistill.packing.declaration import Skipped
from selfdistill.packing.entries import Input
from selfdistill.packing.inputs import Inputs

PLAIN = (".txt", ".txt.gz", ".txt.zst")
JSON = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json.gz", ".json.zst")
PARQUET = (".parquet",)
BLOCK = 1 << 18
"""Bytes of a block, about."""
MAX_PLAIN = 1 << 20
"""Bytes of a document of plain text; the rest of a longer one counts as another."""
MAX_LINE = 1 << 24
"""Bytes of a line of JSON; longer ones are skipped."""
_ROWS = 256
_PACKED = 1 << 10
"""Bytes of zstandard that are unpacked at a time; they may hold 32,000 times as many."""
_MARKS = {
    codecs.BOM_UTF32_LE: UTF_32,  # begins with that of UTF-16
    codecs.BOM_UTF32_BE: UTF_32,
    codecs.BOM_UTF16_LE: UTF_16,
    codecs.BOM_UTF16_BE: UTF_16,
}
"""Byte order marks, and what they tell."""
_BLANK = re.compile(rb"\n[ \t\r\f\v]+\n")


class Blocks:
    """The blocks of all inputs, in order.

    Args:
        inputs: files of the kinds above.
        ends: of documents in plain text.
        field: the column of Parquet files that is the text.

    Attributes:
        position: bytes of the inputs that are read, as they lie on the disk.
    """

    def __init__(self, inputs: Inputs, ends: Ends, field: str) -> None:
        self.position = 0
        self._inputs, self._ends, self._field = inputs, ends, field

    def __iter__(self) -> Iterator[Block | Skipped]:
        """Files that cannot be read, or not to their end, are skipped from there.

        Raises:
            UserError: a package is missing that reads such files.
        """
        before = 0
        for number in range(len(self._inputs)):
            source = self._inputs[number]
            if not source.size:  # or a pipe, which nobody may ever write to
                yield source.name, "empty text", ""
                continue
            path = source.path.lower()
            kinds = ((PARQUET, self._rows), (JSON, self._json), (PLAIN, self._plain))
            read = next(read for suffixes, read in kinds if path.endswith(suffixes))
            try:
                yield from read(number, source)
            except UserError:
                raise
            except BadSample as error:
                yield source.name, error.reason, error.detail
            except Exception as error:  # each of the libraries has its own
                detail = (isinstance(error, OSError) and error.strerror) or str(error)
                yield source.name, "cannot be read to its end", detail
            before += max(source.size, 0)
            self.position = before

    def _plain(self, number: int, source: Input) -> Iterator[Block]:
        line = 1
        for content, _ in self._cut(source, self._ends, MAX_PLAIN):
            yield Block(number, source.name, line, self._ends, content)
            line += content.count(b"\n") + (not content.endswith(b"\n"))

    def _json(self, number: int, source: Input) -> Iterator[Block | Skipped]:
        line, is_rest = 1, False
        for content, is_whole in self._cut(source, "json", MAX_LINE):
            if is_whole:
                whole = content.partition(b"\n")[2] if is_rest else content
                if whole:
                    yield Block(number, source.name, line + is_rest, "json", whole)
                is_rest = False
            elif not is_rest:
                is_rest = True
                yield f"{source.name} ({line})", f"a line of more than {MAX_LINE:,} bytes", ""
            line += content.count(b"\n")

    def _cut(self, source: Input, kind: Kind, most: int) -> Iterator[tuple[bytes, bool]]:
        """Blocks, and whether they end where a document does; if there is no such place in ``most``
        bytes, they end where a line, a word or at least a character does. ``BadSample`` where the
        file is empty or no UTF-8."""
        before, held = self.position, b""
        with open(source.path, "rb") as raw, _unpacked(raw, source.path.lower()) as file:
            new = file.read(BLOCK)
            if not new:
                raise BadSample("empty text")
            for mark, reason in _MARKS.items():
                if new.startswith(mark):
                    raise BadSample(reason, "it begins with a byte order mark")
            while new:
                held += new
                self.position = before + raw.tell()
                at = _end(held, kind)
                is_whole = at > 0
                if not at and len(held) >= most:
                    at = held.rfind(b"\n") + 1 or held.rfind(b" ") + 1 or _last_character(held)
                if at:
                    yield held[:at], is_whole
                    held = held[at:]
                new = file.read(BLOCK)
        if held:
            yield held, True

    def _rows(self, number: int, source: Input) -> Iterator[Block | Skipped]:
        parquet = _required("pyarrow.parquet", "pyarrow", source.path)
        # opened here, because pyarrow opens no name that is not UTF-8
        with open(source.path, "rb") as raw, parquet.ParquetFile(raw) as file:
            columns = file.schema_arrow.names
            if self._field not in columns:
                yield source.name, f"no column '{self._field}'", there_are(columns, REMEDY)
                return
            row, before = 1, self.position
            for batch in file.iter_batches(_ROWS, columns=[self._field]):
                self.position = before + source.size * row // (file.metadata.num_rows + 1)
                for values in _portions(_values(batch.column(0))):
                    yield Block(number, source.name, row, "rows", values)
                    row += len(values)


def _values(column: Any) -> list[Any]:
    """Of a column of Parquet; as bytes where it is to be text and one of them is no UTF-8."""
    values: list[Any]
    try:
        values = column.to_pylist()
    except UnicodeDecodeError:
        values = column.cast("binary").to_pylist()
    return values


def _portions(values: Sequence[Any]) -> Iterator[list[Any]]:
    """Rows that follow each other, about ``BLOCK`` bytes at a time; a row may be a book."""
    held: list[Any] = []
    size = 0
    for value in values:
        held.append(value)
        size += row_size(value)
        if size >= BLOCK:
            yield held
            held, size = [], 0
    if held:
        yield held


def _end(held: bytes, kind: Kind) -> int:
    """The end of the last whole document, 0 where it is not known."""
    if kind == "file":
        return 0
    if kind != "blank":
        return held.rfind(b"\n") + 1
    at = max(held.rfind(b"\n\n"), held.rfind(b"\n\r\n")) + 1
    return at or max((found.start() + 1 for found in _BLANK.finditer(held)), default=0)


def _last_character(held: bytes) -> int:
    at = len(held) - 1
    while at > 1 and held[at] & 0xC0 == 0x80:
        at -= 1
    return at


@contextmanager
def _unpacked(raw: BinaryIO, path: str) -> Iterator[BinaryIO]:
    if path.endswith(".gz"):
        with gzip.open(raw, "rb") as file:
            yield file  # type: ignore[misc]
    elif path.endswith(".zst"):
        with _zstd(raw, path) as file:
            yield file
    else:
        yield raw


def _zstd(raw: BinaryIO, path: str) -> Any:
    try:
        own = importlib.import_module("compression.zstd")  # Python 3.14
    except ModuleNotFoundError:
        zstandard = _required("zstandard", "zstandard", path)
        return io.BufferedReader(_Frames(raw, zstandard.ZstdDecompressor().decompressobj))
    return own.open(raw, "rb")


class _Frames(io.RawIOBase):
    """Zstandard frames that follow each other, unpacked; ``EOFError`` where the last one is cut,
    which zstandard's own reader takes for its end.

    Args:
        raw: what is packed.
        new_frame: gives what unpacks one frame.
    """

    def __init__(self, raw: BinaryIO, new_frame: Callable[[], Any]) -> None:
        self._raw, self._new_frame = raw, new_frame
        self._frame: Any = None
        self._unpacked = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._unpacked:
            is_between = self._frame is None or self._frame.eof
            packed = (self._frame and self._frame.unused_data) or self._raw.read(_PACKED)
            if not packed and is_between:
                return 0
            if not packed:
                raise EOFError("Compressed file ended before its end-of-stream marker")
            if is_between:
                self._frame = self._new_frame()
            self._unpacked = memoryview(self._frame.decompress(packed))
        size = min(len(buffer), len(self._unpacked))
        buffer[:size], self._unpacked = self._unpacked[:size], self._unpacked[size:]
        return size


def _required(module: str, package: str, path: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise UserError(
            f"SOURCE: '{os.path.basename(path)}' can be read with the package {package} only; "
            f"pip install {package}"
        ) from error
