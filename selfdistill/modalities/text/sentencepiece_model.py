"""What a SentencePiece ``.model`` file holds, by the names of sentencepiece_model.proto."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import sentencepiece


class Kind(IntEnum):
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Piece:
    text: str
    score: float
    kind: Kind


@dataclass(frozen=True)
class SentencePieceModel:
    """What the ids of a text depend on.

    Attributes:
        pieces: in the order of their ids.
        model_type: 1 unigram, 2 bpe, 3 word, 4 char.
    """

    pieces: list[Piece]
    model_type: int
    treat_whitespace_as_suffix: bool
    byte_fallback: bool
    precompiled_charsmap: bytes
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    escape_whitespaces: bool


def parse_model(content: bytes) -> SentencePieceModel:
    """Read the content of a ``.model`` file.

    Not with sentencepiece's own message classes, which refuse a protobuf older than theirs.

    Raises:
        ValueError: it is no SentencePiece model.
    """
    try:
        sentencepiece.SentencePieceProcessor().LoadFromSerializedProto(content)
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    fields = list(_fields(content))
    sections = dict(fields)
    trainer, normalizer = (dict(_fields(sections.get(number, b""))) for number in (2, 3))
    return SentencePieceModel(
        pieces=[_piece(value) for number, value in fields if number == 1],
        model_type=trainer.get(3, 1),
        treat_whitespace_as_suffix=bool(trainer.get(24, False)),
        byte_fallback=bool(trainer.get(35, False)),
        precompiled_charsmap=normalizer.get(2, b""),
        add_dummy_prefix=bool(normalizer.get(3, True)),
        remove_extra_whitespaces=bool(normalizer.get(4, True)),
        escape_whitespaces=bool(normalizer.get(5, True)),
    )


def without_rule_file(content: bytes) -> bytes:
    """The model without the path of the file that its normaliser was made from, which is nobody's
    business, and other at every training."""
    normalizer = dict(_fields(content))[3]
    kept = b"".join(_field(number, value) for number, value in _fields(normalizer) if number != 6)
    return content.replace(_field(3, normalizer), _field(3, kept))


def _field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return _written_varint(number << 3) + _written_varint(value)
    return _written_varint(number << 3 | 2) + _written_varint(len(value)) + value


def _written_varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _piece(message: bytes) -> Piece:
    fields = dict(_fields(message))
    (score,) = struct.unpack("<f", fields.get(2, bytes(4)))
    return Piece(fields[1].decode("utf-8"), score, Kind(fields.get(3, Kind.NORMAL)))


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Number and value (int, or bytes) of each field of a protocol buffer.

    The wire format is https://protobuf.dev/programming-guides/encoding/.
    """
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == 0:
            value, at = _varint(message, at)
            yield number, value
            continue
        if wire_type == 2:
            size, at = _varint(message, at)
        else:
            size = {1: 8, 5: 4}[wire_type]
        yield number, message[at : at + size]
        at += size


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """The number that starts at byte ``at``, and where the next one starts."""
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
