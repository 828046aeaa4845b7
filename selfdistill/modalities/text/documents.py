"""Blocks of text files, and the documents in them."""

import string
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from selfdistill.errors import BadSample
from selfdistill.modalities.text.values import as_text, entry
from selfdistill.packing.declaration import Skipped

Ends = Literal["blank", "line", "file"]
"""What ends a document of plain text: a blank line, every line, the file."""
Kind = Literal["blank", "line", "file", "json", "rows"]

UTF_16, UTF_32 = (
    f"seems to be {name}; convert it, for example with iconv -f {name} -t UTF-8"
    for name in ("UTF-16", "UTF-32")
)
"""Reasons."""
REMEDY = "--field names another"
"""Where an entry or a column is not there."""

_BLANK = string.whitespace + "\0"
_BYTE_ORDER_MARK = "\ufeff"
_CONTROLS = bytes(set(range(32)) - set(string.whitespace.encode()))


@dataclass(frozen=True)
class Document:
    """A text.

    Attributes:
        input, name: number and name of its file.
        line: in which it begins there, or the row; from 1. A plain line that is far too long counts
            as several.
        text: with the line ends of Unix.
    """

    input: int
    name: str
    line: int
    text: str


@dataclass(frozen=True)
class Block:
    """Whole documents that follow each other in a file.

    Attributes:
        input, name: number and name of the file.
        line: the first.
        kind: how documents are told apart.
        content: lines (bytes), or a list of the values of rows (texts as str or bytes).
    """

    input: int
    name: str
    line: int
    kind: Kind
    content: Any

    @property
    def size(self) -> int:
        """Bytes, about."""
        return sum(map(row_size, self.content)) if self.kind == "rows" else len(self.content)

    def documents(self, field: str) -> Iterator[Document | Skipped]:
        """The documents, and what of them has no text.

        Args:
            field: the entry of JSON objects that is the text.
        """
        for line, raw in self._raw():
            try:
                yield Document(self.input, self.name, line, _text(raw, self.kind, field))
            except BadSample as error:
                yield f"{self.name} ({line})", error.reason, error.detail

    def _raw(self) -> Iterator[tuple[int, Any]]:
        if self.kind == "rows":
            yield from enumerate(self.content, self.line)
            return
        lines = enumerate(self.content.split(b"\n"), self.line)
        if self.kind in ("line", "json"):
            yield from ((number, line) for number, line in lines if line.strip())
            return
        held: list[bytes] = []
        for number, line in lines:
            is_blank = not line.strip()
            if is_blank and self.kind == "blank" and held:
                yield number - len(held), b"\n".join(held)
                held = []
            elif held or not is_blank:
                held.append(line)
        if held:
            yield number + 1 - len(held), b"\n".join(held)


def row_size(value: Any) -> int:
    """Of the value of a row, about bytes."""
    return len(value) if isinstance(value, str | bytes) else 0


def _text(raw: Any, kind: Kind, field: str) -> str:
    value = _decoded(raw) if isinstance(raw, bytes) else raw
    text = as_text(entry(value, field, REMEDY) if kind == "json" else value)
    if not text.strip(_BLANK):
        raise BadSample("empty text")
    return text.replace("\r\n", "\n").removesuffix("\r")


def _decoded(raw: bytes) -> str:
    # every second byte of UTF-16 in most alphabets, all of which would be UTF-8 besides
    inner = raw.strip(_BLANK.encode())
    controls = len(inner) - len(inner.translate(None, _CONTROLS))
    if 3 * controls > len(inner):
        # the upper half of nearly all characters of UTF-32 is zero
        reason = UTF_32 if 8 * inner.count(b"\0\0") > len(inner) else UTF_16
        raise BadSample(reason, f"{controls:,} of {len(inner):,} bytes are control characters")
    try:
        return raw.decode("utf-8").removeprefix(_BYTE_ORDER_MARK)
    except UnicodeDecodeError as error:
        raise BadSample("text is not UTF-8", str(error)) from error
