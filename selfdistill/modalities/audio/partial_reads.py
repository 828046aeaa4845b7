"""Whether libsndfile reads the whole of a file.

Of Ogg and MP3 that were joined it reads the first; an MP3 whose first frame does not tell its
length it reads as far as the bit rate of its beginning lets it guess; and of a WAV what the header
announces, which recorders write first, and correct when they are done.
"""

import struct
from functools import cache
from mmap import mmap

import soundfile

from selfdistill.errors import BadSample

Content = bytes | mmap

WAV_SPARE = 64 << 10
"""Bytes in no chunk that are no recording: programs pad files, and append what is their own."""
WAV_CHUNKS = 64
"""That are looked at; a file may have millions."""
_WAV_HEAD = struct.Struct("<4sI")
_TAKEN_AS_OPEN = struct.pack("<I", 8)
"""The size of the whole at which libsndfile reads all that follows an empty ``data``."""

OGG_LONGEST_PAGE = 1 << 16
"""Bytes, about."""
OGG_STREAMS = 64
"""Of a file that are looked at."""
_FIRST_OF_STREAM = 2

MP3_SPARE = 0.1
"""Share of its announced length that a file may hold besides."""
_KBPS = {
    True: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 0),
    False: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 0),
}
"""Of MPEG 1, and of 2 and 2.5; 0: not known."""
_RATES = (44_100, 48_000, 32_000, 0)
_PARTS = {3: 1, 2: 2, 0: 4}
"""Of these rates, by the bits of the version."""


def check_read_whole(content: Content, sound: soundfile.SoundFile) -> None:
    """Refuse what would be read in part.

    Of a WAV it looks at the heads of chunks alone. Passes RF64 and W64, and sizes larger than the
    file, which programs write that cannot correct them.

    Args:
        content: of the file.
        sound: the same, opened.

    Raises:
        BadSample: there is more in it.
    """
    if content[:4] == b"RIFF" and content[8:12] == b"WAVE":
        announced, rest = _wav_bytes(content)
        if rest > min(announced, WAV_SPARE):
            raise BadSample(
                "WAV that holds more than its header announces: it is still being written, or was "
                "not closed; repair its header, for example with sox --ignore-length",
                f"{announced:,} bytes of audio announced, {announced + rest:,} there",
            )
    if sound.format == "OGG" and _is_chained(content):
        raise BadSample(
            "Ogg that was joined from several, of which only the first would be read; convert it, "
            "for example with ffmpeg"
        )
    if sound.format == "MP3":
        samples, most = _mp3_samples(content), sound.frames * (1 + MP3_SPARE) + 4 * 1152
        if samples > most:
            raise BadSample(
                "MP3 that holds more than it announces, because it was joined from several or "
                "never told its length; convert it, for example with ffmpeg",
                f"{sound.frames / sound.samplerate:.2f} seconds announced, "
                f"{samples / sound.samplerate:.2f} there",
            )


def _wav_bytes(content: Content) -> tuple[int, int]:
    """Bytes of ``data``, and those behind it that belong to no chunk; 0, 0 where ``data`` is the
    rest of the file."""
    place, end = 12, len(content)
    announced, is_padded = -1, False
    for _ in range(WAV_CHUNKS):
        head = content[place : place + _WAV_HEAD.size]
        name, size = _WAV_HEAD.unpack(head.ljust(_WAV_HEAD.size, b"\0"))
        after = place + _WAV_HEAD.size + size
        if after <= end and name.isascii() and name.decode().isprintable():
            announced = size if name == b"data" and announced < 0 else announced
            is_padded = size % 2 == 1
            place = after + is_padded
        elif is_padded and place < end:  # some programs leave out that byte
            is_padded = False
            place -= 1
        elif announced < 0 or (announced == 0 and content[4:8] == _TAKEN_AS_OPEN):
            return 0, 0
        else:
            return announced, end - place
    return 0, 0


def _is_chained(content: Content) -> bool:
    """Whether the last page of an Ogg is of a stream that does not begin at its beginning."""
    streams, place = set(), 0
    for _ in range(OGG_STREAMS):
        page = content[place : place + 27 + 255]
        if page[:4] != b"OggS" or len(page) < 27 or not page[5] & _FIRST_OF_STREAM:
            break
        streams.add(page[14:18])
        place += 27 + page[26] + sum(page[27 : 27 + page[26]])
    end = content[-OGG_LONGEST_PAGE:]
    at = end.rfind(b"OggS\0")
    return 0 <= at <= len(end) - 18 and end[at + 14 : at + 18] not in streams


def _mp3_samples(content: Content) -> int:
    """Of an MP3's frames that follow each other from its beginning, tags aside."""
    samples = place = 0
    while True:
        head = content[place : place + 10]
        size, more = _mp3_frame(head[:3]) if len(head) > 3 else (0, 0)
        if head.startswith(b"ID3") and len(head) == 10:
            size = 10 + sum(byte << 7 * power for power, byte in enumerate(head[:5:-1]))
        if not size:
            return samples
        place, samples = place + size, samples + more


@cache
def _mp3_frame(head: bytes) -> tuple[int, int]:
    """Bytes and samples of a frame of layer 3 that begins so, 0 and 0 if none does."""
    bits = int.from_bytes(head)
    parts = _PARTS.get(bits >> 11 & 3)
    if bits >> 13 != 0x7FF or bits >> 9 & 3 != 1 or parts is None:
        return 0, 0
    samples = 1152 if parts == 1 else 576
    kbps, rate = _KBPS[parts == 1][bits >> 4 & 15], _RATES[bits >> 2 & 3] // parts
    if not kbps or not rate:
        return 0, 0
    return samples // 8 * kbps * 1000 // rate + (bits >> 1 & 1), samples
