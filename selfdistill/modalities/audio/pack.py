"""Recordings into clips: short ones are copied, long ones cut where they are quiet."""

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import soundfile

from selfdistill.data.tarindex import MEMBER_BYTES
from selfdistill.errors import BadSample, UserError
from selfdistill.folders import as_text
from selfdistill.modalities.audio.data import EXTENSIONS, MAX_RATE, MIN_RATE
from selfdistill.modalities.audio.manifests import MANIFESTS
from selfdistill.modalities.audio.recordings import (
    FLAC_CHANNELS,
    SEARCHED,
    TOLERANCE,
    checked_bytes,
    needs_its_name,
    opened,
    quiet_place,
    read_values,
    write_flac,
)
from selfdistill.packing.classes import class_member, labels_option, write_classes
from selfdistill.packing.declaration import (
    PIECE,
    Job,
    Lot,
    Packing,
    Piece,
    Sample,
    Skipped,
    Survey,
    option,
)
from selfdistill.packing.entries import Input

MAX_HOURS = 100
"""Of a recording. Headers may announce any length, or that it is not known."""
_FLAC_BYTES = 1.1
"""Of a value of 16 bits in FLAC, about."""
_SCALED = "louder than full scale, so made quieter; its json says by how much"


@dataclass(frozen=True)
class AudioOptions:
    """Of ``selfdistill pack audio``."""

    max_seconds: float = option(
        30.0, "cut longer recordings into about equal clips, where they are quiet (default 30)"
    )
    min_seconds: float = option(1.0, "skip shorter recordings (default 1)")
    rate: int = option(
        0, "resample to this many Hz, mix down to one channel and write FLAC (default: keep)"
    )
    labels: str = labels_option()


def check(options: AudioOptions) -> None:
    """Refuse limits that leave nothing."""
    if not 0 < options.max_seconds <= MAX_HOURS * 3600:
        raise UserError(
            f"--max-seconds: {options.max_seconds} must be more than 0, and no more than "
            f"{MAX_HOURS} hours"
        )
    if not 0 <= options.min_seconds <= options.max_seconds / 4:
        raise UserError(
            f"--min-seconds: {options.min_seconds} must be between 0 and a quarter of "
            f"--max-seconds {options.max_seconds}"
        )
    if options.rate and not MIN_RATE <= options.rate <= MAX_RATE:
        raise UserError(f"--rate: {options.rate} must be between {MIN_RATE} and {MAX_RATE} Hz")


def survey(job: Job, lot: Lot) -> Survey:
    """The clips of a lot's recordings, by their headers."""
    rows: list[tuple[Any, ...]] = []
    skipped: list[Skipped] = []
    for number, source in lot.items:
        try:
            rows += [(number, lot.number, *row) for row in _clips(job.options, source)]
        except BadSample as error:
            skipped.append((source.name, error.reason, error.detail))
    return Survey(np.array(rows, PIECE), skipped)


def _clips(options: AudioOptions, source: Input) -> Iterator[tuple[int, ...]]:
    """Fields of ``PIECE`` from ``number`` on; clips that are copied have no frames."""
    with opened(source) as file:
        rate, channels = file.samplerate, file.channels
        first, last = _range(source, file)
        is_whole = first == 0 and file.frames - last <= TOLERANCE * rate
        is_told = not needs_its_name(file)
    seconds = (last - first) / rate
    if seconds < options.min_seconds or last <= first:
        raise BadSample("shorter than --min-seconds", f"{seconds:.2f} s")
    fits = seconds <= options.max_seconds and _extension(source) in EXTENSIONS
    as_asked = not options.rate or (options.rate, 1) == (rate, channels)
    if is_whole and fits and as_asked and is_told:
        if source.size > MEMBER_BYTES:
            raise BadSample(f"a file of more than {MEMBER_BYTES:,} bytes")
        yield -1, 0, 0, 0, source.size, seconds
        return
    if channels > FLAC_CHANNELS and not options.rate:
        raise BadSample(
            f"more than the {FLAC_CHANNELS} channels of FLAC; --rate mixes them down to one",
            f"{channels} channels",
        )
    count = math.ceil(seconds / (options.max_seconds * (1 - SEARCHED)))
    count = 1 if seconds <= options.max_seconds else count
    ends = [first + round((last - first) * i / count) for i in range(count + 1)]
    for number, (start, stop) in enumerate(pairwise(ends)):
        values = (stop - start) * (options.rate / rate if options.rate else channels)
        size = min(int(values * _FLAC_BYTES), MEMBER_BYTES)
        yield (number if count > 1 else -1), 0, start, stop, size, (stop - start) / rate


def _range(source: Input, file: soundfile.SoundFile) -> tuple[int, int]:
    """First frame and end of what is wanted of a recording."""
    rate = file.samplerate
    if not MIN_RATE <= rate <= MAX_RATE:
        raise BadSample(f"sampling rate outside {MIN_RATE} to {MAX_RATE} Hz", f"{rate} Hz")
    if not file.frames:
        raise BadSample("empty audio", "there is a header only")
    if not 0 < file.frames <= MAX_HOURS * 3600 * rate:
        raise BadSample(f"length unknown or above {MAX_HOURS} hours", f"{file.frames} frames")
    seconds = file.frames / rate
    return round(min(source.start, seconds) * rate), round(min(source.stop, seconds) * rate)


def read(job: Job, piece: Piece) -> Sample:
    """A clip as it goes into a shard: the file itself, or a part of it as FLAC, made quieter where
    16 bits would clip it."""
    source, options = piece.input, job.options
    with opened(source) as file:
        rate = file.samplerate
        if not piece.stop:
            data = checked_bytes(source, file)
            seconds = file.frames / rate
            about = _about(piece, 0.0, seconds, rate)
            return _sample(job, piece, {_extension(source): data}, about)
        ends = _range(source, file)
        first, last = (
            at if at in ends else quiet_place(file, at, options.max_seconds)
            for at in (piece.start, piece.stop)
        )
        values = read_values(file, first, last, options.rate)
    seconds = len(values) / (options.rate or rate)
    if seconds < options.min_seconds or not len(values):
        raise BadSample("ends before its header says", f"{seconds:.2f} s of a clip are left")
    about = _about(piece, first / rate, seconds, options.rate or rate)
    scale = 1.0 / max(float(np.abs(values).max()), 1.0)
    members = {"flac": write_flac(values * scale, about["sampling_rate"])}
    if scale == 1.0:
        return _sample(job, piece, members, about)
    return _sample(job, piece, members, {**about, "scaled": round(scale, 6)}, _SCALED)


def _about(piece: Piece, start: float, seconds: float, rate: int) -> dict[str, Any]:
    return {
        "path": as_text(piece.input.name),
        "start": round(start, 4),
        "seconds": round(seconds, 4),
        "sampling_rate": rate,
    }


def _sample(
    job: Job, piece: Piece, members: dict[str, bytes], about: dict[str, Any], change: str = ""
) -> Sample:
    more = {"json": json.dumps(about).encode(), **class_member(job, piece)}
    return Sample(members | more, about["seconds"], change)


def _extension(source: Input) -> str:
    return os.path.splitext(source.path)[1].lower().removeprefix(".")


PACKING = Packing(
    suffixes=[f".{extension}" for extension in EXTENSIONS],
    options=AudioOptions,
    unit="seconds",
    read=read,
    survey=survey,
    manifests=MANIFESTS,
    check=check,
    prepare=write_classes,
)
