"""How much audio the header of a WAV announces, beside what the file holds."""

import io
import struct
from typing import BinaryIO

from selfdistill.errors import BadSample

SPARE = 64 << 10
"""Bytes in no chunk that are no recording: programs pad files, and append what is their own."""
CHUNKS = 64
"""That are looked at; a file may have millions."""
_HEAD = struct.Struct("<4sI")
_TAKEN_AS_OPEN = struct.pack("<I", 8)
"""The size of the whole at which libsndfile reads all that follows an empty ``data``."""


def check_announced(file: BinaryIO) -> None:
    """Refuse a WAV that would be read in part, because more follows than its header announces:
    recorders write the header first, and correct it when they are done.

    Looks at the heads of chunks alone. Passes all that is no WAV (RF64 and W64 are none), and sizes
    larger than the file, which programs write that cannot correct them.

    Raises:
        BadSample: much of what follows the audio is no chunk.
    """
    start = file.read(12)
    if start[:4] != b"RIFF" or start[8:] != b"WAVE":
        return
    announced, rest = _announced(file, len(start))
    if announced == 0 and start[4:8] == _TAKEN_AS_OPEN:
        return
    if rest > min(announced, SPARE):
        raise BadSample(
            "WAV that holds more than its header announces: it is still being written, or was not "
            "closed; repair its header, for example with sox --ignore-length",
            f"{announced:,} bytes of audio announced, {announced + rest:,} there",
        )


def _announced(file: BinaryIO, place: int) -> tuple[int, int]:
    """Bytes of ``data``, and those behind it that belong to no chunk; 0, 0 where ``data`` is the
    rest of the file.

    Args:
        place: of the first chunk.
    """
    end = file.seek(0, io.SEEK_END)
    announced, is_padded = -1, False
    for _ in range(CHUNKS):
        file.seek(place)
        head = file.read(_HEAD.size)
        name, size = _HEAD.unpack(head.ljust(_HEAD.size, b"\0"))
        after = place + _HEAD.size + size
        if after <= end and name.isascii() and name.decode().isprintable():
            announced = size if name == b"data" and announced < 0 else announced
            is_padded = size % 2 == 1
            place = after + is_padded
        elif is_padded and place < end:  # some programs leave out that byte
            is_padded = False
            place -= 1
        else:
            return (announced, end - place) if announced >= 0 else (0, 0)
    return 0, 0
