"""Whether libsndfile reads the whole of an MP3 or Ogg.

Of streams that were joined it reads the first; and an MP3 whose first frame does not tell its
length it reads as far as the bit rate of its beginning lets it guess.
"""

from functools import cache
from mmap import mmap

import soundfile

from selfdistill.errors import BadSample

SPARE = 0.1
"""Share of its announced length that an MP3 may hold besides."""
LONGEST_PAGE = 1 << 16
"""Bytes of a page of Ogg, about."""
STREAMS = 64
"""Of an Ogg that are looked at."""
_FIRST_OF_STREAM = 2
_KBPS = {
    True: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 0),
    False: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 0),
}
"""Of MPEG 1, and of 2 and 2.5; 0: not known."""
_RATES = (44_100, 48_000, 32_000, 0)
_PARTS = {3: 1, 2: 2, 0: 4}
"""Of these rates, by the bits of the version."""


def check_whole(content: bytes | mmap, sound: soundfile.SoundFile) -> None:
    """Refuse what would be read in part.

    Args:
        content: of the file.
        sound: the same, opened.

    Raises:
        BadSample: there is more in it.
    """
    if sound.format == "OGG" and _is_chained(content):
        raise BadSample(
            "Ogg that was joined from several, of which only the first would be read; convert it, "
            "for example with ffmpeg"
        )
    if sound.format == "MP3":
        samples, most = _samples(content), sound.frames * (1 + SPARE) + 4 * 1152
        if samples > most:
            raise BadSample(
                "MP3 that holds more than it announces, because it was joined from several or "
                "never told its length; convert it, for example with ffmpeg",
                f"{sound.frames / sound.samplerate:.2f} seconds announced, "
                f"{samples / sound.samplerate:.2f} there",
            )


def _is_chained(content: bytes | mmap) -> bool:
    """Whether the last page of an Ogg is of a stream that does not begin at its beginning."""
    streams, place = set(), 0
    for _ in range(STREAMS):
        page = content[place : place + 27 + 255]
        if page[:4] != b"OggS" or len(page) < 27 or not page[5] & _FIRST_OF_STREAM:
            break
        streams.add(page[14:18])
        place += 27 + page[26] + sum(page[27 : 27 + page[26]])
    end = content[-LONGEST_PAGE:]
    at = end.rfind(b"OggS\0")
    return 0 <= at <= len(end) - 18 and end[at + 14 : at + 18] not in streams


def _samples(content: bytes | mmap) -> int:
    """Of an MP3's frames that follow each other from its beginning, tags aside."""
    samples = place = 0
    while True:
        head = content[place : place + 10]
        size, more = _frame(head[:3]) if len(head) > 3 else (0, 0)
        if head.startswith(b"ID3") and len(head) == 10:
            size = 10 + sum(byte << 7 * power for power, byte in enumerate(head[:5:-1]))
        if not size:
            return samples
        place, samples = place + size, samples + more


@cache
def _frame(head: bytes) -> tuple[int, int]:
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
