"""Recordings: opened as training opens them, read in parts, written as FLAC."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile

from selfdistill.errors import BadSample
from selfdistill.modalities.audio.data import told
from selfdistill.modalities.audio.partial_reads import check_read_whole
from selfdistill.modalities.audio.resampling import resample
from selfdistill.packing.entries import Input

SEARCHED = 0.1
"""Share of --max-seconds in which a quiet place is looked for."""
_QUIET = 0.1
"""Seconds over which loudness is taken."""
_LEAD = 0.25
"""Seconds that are read before what is wanted. The first frames of an MP3 behind a place that was
sought may lack what earlier ones hold of them, and are noise then."""
_BLOCK = 1 << 16
TOLERANCE = 0.1
"""Seconds that a file may lack of what its header says; some headers are estimates."""
FLAC_CHANNELS = 8


@contextmanager
def opened(source: Input) -> Iterator[soundfile.SoundFile]:
    """A recording; ``BadSample`` where it cannot be opened, or be read in the block."""
    if source.size < 0:
        raise BadSample("no such file", source.path)
    if source.size == 0:
        raise BadSample("empty audio")
    try:
        with open(source.path, "rb") as raw, _sound(raw, source.path) as file:
            with mmap(raw.fileno(), 0, access=ACCESS_READ) as content:
                check_read_whole(content, file)
            yield file
    except OSError as error:
        raise BadSample("cannot be read", str(error.strerror)) from error
    except RuntimeError as error:
        raise BadSample("undecodable audio", told(error)) from error


def _sound(raw: BinaryIO, path: str) -> soundfile.SoundFile:
    """As training opens it, from its bytes; by its name where that is not enough."""
    try:
        return soundfile.SoundFile(raw)
    except TypeError as error:  # a .raw, which tells nothing of itself
        raise BadSample("undecodable audio", str(error)) from error
    except soundfile.LibsndfileError as unknown:
        with suppress(soundfile.LibsndfileError):
            return soundfile.SoundFile(os.fsencode(path))
        raise unknown


def needs_its_name(file: soundfile.SoundFile) -> bool:
    """Whether the suffix alone tells the format, as of an MP3 that begins inside a frame."""
    return isinstance(file.name, bytes)


def checked_bytes(source: Input, file: soundfile.SoundFile) -> bytes:
    """The bytes of a file that can be decoded to its end; ``BadSample`` of any other."""
    frames = 0
    while len(block := file.read(_BLOCK, dtype="float32")):
        frames += len(block)
        _refuse_infinite(block)
    if frames < file.frames - TOLERANCE * file.samplerate:
        raise BadSample(
            "ends before its header says", f"{frames} of {file.frames} frames can be decoded"
        )
    return Path(source.path).read_bytes()


def _refuse_infinite(values: np.ndarray) -> None:
    if not np.isfinite(values).all():
        raise BadSample("audio with NaN or infinity")


def quiet_place(file: soundfile.SoundFile, at: int, max_seconds: float) -> int:
    """The middle of the quietest moment before frame ``at``; the latest of several."""
    searched, moment = (
        int(seconds * file.samplerate) for seconds in (SEARCHED * max_seconds, _QUIET)
    )
    if searched < 2 * moment:
        return at
    values = _frames(file, at - searched, at, "float64")
    # what is no number is refused when the clip is read
    power = (np.nan_to_num(values, posinf=0.0, neginf=0.0) ** 2).mean(axis=1)
    sums = np.concatenate([[0.0], np.cumsum(power)])
    hop = max(moment // 10, 1)
    loudness = (sums[moment:] - sums[:-moment])[::-hop]  # the last moment first
    if not len(loudness):
        return at
    return at - searched + len(power) - int(np.argmin(loudness)) * hop - moment // 2


def read_values(file: soundfile.SoundFile, first: int, last: int, rate: int) -> np.ndarray:
    """Frames ``first`` to ``last``, [n, channels]; with a ``rate`` resampled, [n]."""
    values = _frames(file, first, last, "float32")
    _refuse_infinite(values)
    return resample(values.mean(axis=1), file.samplerate, rate) if rate else values


def _frames(file: soundfile.SoundFile, first: int, last: int, kind: str) -> np.ndarray:
    """Frames ``first`` to ``last``, fewer where the file ends before, [n, channels]."""
    start = max(first - int(_LEAD * file.samplerate), 0)
    file.seek(start)
    file.read(first - start, dtype=kind)
    values: np.ndarray = file.read(last - first, dtype=kind, always_2d=True)
    return values


def write_flac(values: np.ndarray, rate: int) -> bytes:
    """Values between -1 and 1, [n] or [n, channels], in 16 bits; ``BadSample`` where it cannot."""
    out = io.BytesIO()
    # exact for what had 16 bits
    values = np.rint(values * 32768.0).clip(-32768, 32767).astype(np.int16)
    try:
        soundfile.write(out, values, rate, format="FLAC", subtype="PCM_16")
    except (RuntimeError, ValueError) as error:
        raise BadSample("cannot be written as FLAC", told(error)) from error
    return out.getvalue()
