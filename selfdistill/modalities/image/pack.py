"""Pictures into samples: copied as they are, or made smaller."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from selfdistill.data.tarindex import MEMBER_BYTES
from selfdistill.errors import BadSample, UserError
from selfdistill.modalities.image.config import ImageInputConfig
from selfdistill.modalities.image.data import FORMATS, check_sides, decoding, upright_rgb
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

_EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
_QUALITY = 95


@dataclass(frozen=True)
class ImageOptions:
    """Of ``selfdistill pack image``."""

    max_side: int = option(
        0, "write larger pictures as JPEG of at most this many pixels a side (default: keep)"
    )
    labels: str = labels_option()


def check(options: ImageOptions) -> None:
    """Refuse sides that no picture has."""
    if options.max_side < 0 or options.max_side == 1:
        raise UserError(f"--max-side: {options.max_side} must be 2 or more")


def survey(job: Job, lot: Lot) -> Survey:
    """One piece per file; nothing is opened."""
    rows: list[tuple[float, ...]] = []
    skipped: list[Skipped] = []
    for number, source in lot.items:
        if source.size < 0:
            skipped.append((source.name, "cannot be read", ""))
        elif source.size == 0:
            skipped.append((source.name, "empty image", ""))
        elif source.size > MEMBER_BYTES:
            too_large = f"a file of more than {MEMBER_BYTES:,} bytes"
            skipped.append((source.name, too_large, f"{source.size:,} bytes"))
        else:
            rows.append((number, lot.number, -1, 0, 0, 0, source.size, 0.0))
    return Survey(np.array(rows, PIECE), skipped)


def read(job: Job, piece: Piece) -> Sample:
    """A picture that can be decoded to its end; its length is its longer side."""
    try:
        data = Path(piece.input.path).read_bytes()
    except OSError as error:
        raise BadSample("cannot be read", str(error.strerror)) from error
    data, kind, side = _checked(data, job.options.max_side)
    suffix = Path(piece.input.name).suffix.lower().removeprefix(".").replace("jpeg", "jpg")
    return Sample({_EXTENSIONS.get(kind, suffix): data, **class_member(job, piece)}, side)


def _checked(data: bytes, max_side: int) -> tuple[bytes, str, int]:
    """The bytes of a picture, its format and its longer side."""
    with decoding(ImageInputConfig.max_pixels):
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        check_sides(image)
        kind, longer = str(image.format), max(image.size)
        if max_side and longer > max_side:
            return (*_smaller(image, max_side), max_side)
        image.draft(image.mode, (1, 1))  # an eighth is enough to see whether all is there
        image.load()
    return data, kind, longer


def _smaller(image: Image.Image, max_side: int) -> tuple[bytes, str]:
    image.draft("RGB", (2 * max_side, 2 * max_side))
    image = upright_rgb(image)
    image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    check_sides(image)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=_QUALITY)
    return out.getvalue(), "JPEG"


PACKING = Packing(
    suffixes=(".jpg", ".jpeg", ".png", ".webp"),
    options=ImageOptions,
    unit="pixels",
    adds_up=False,
    read=read,
    survey=survey,
    check=check,
    prepare=write_classes,
)
