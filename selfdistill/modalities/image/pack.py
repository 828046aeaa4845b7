"""Pictures into samples: copied as they are, or made smaller."""

import io
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from selfdistill.errors import BadSample, UserError
from selfdistill.modalities.image.config import ImageInputConfig
from selfdistill.modalities.image.data import FORMATS, pixel_limit, upright_rgb
from selfdistill.packing.declaration import (
    MAX_BYTES,
    PIECE,
    Job,
    Lot,
    Packing,
    Piece,
    Sample,
    Survey,
    option,
)
from selfdistill.packing.folder import put_beside
from selfdistill.packing.inputs import Inputs

CLASSES = "classes.json"
FROM_FOLDERS = "folder"
_EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
_QUALITY = 95


@dataclass(frozen=True)
class ImageOptions:
    """Of ``selfdistill pack image``."""

    max_side: int = option(
        0, "write larger pictures as JPEG of at most this many pixels a side (default: keep)"
    )
    labels: str = option(
        "",
        "folder: the first folder below a SOURCE is the class, numbered in the order of the names, "
        f"which {CLASSES} lists; or such a file, whose numbers are taken (default: no labels)",
    )


def check(options: ImageOptions) -> None:
    """Refuse sides that no picture has."""
    if options.max_side < 0 or options.max_side == 1:
        raise UserError(f"--max-side: {options.max_side} must be 2 or more")


def prepare(job: Job, inputs: Inputs) -> None:
    """Write the list of classes.

    Raises:
        UserError: a picture lies in no folder, or in one that the given list has not.
    """
    labels = job.options.labels
    if not labels:
        return
    found: set[str] = set()
    for i in range(len(inputs)):
        name, slash, _ = inputs[i].name.partition("/")
        if not slash:
            raise UserError(
                f"--labels: '{inputs[i].path}' lies in no folder of a class; name the folder above "
                "the classes"
            )
        found.add(name)
    classes = sorted(found) if labels == FROM_FOLDERS else _given(Path(labels))
    unknown = sorted(found - set(classes))
    if unknown:
        raise UserError(
            f"--labels: {labels} has no class '{unknown[0]}' ({len(unknown)} such folders)"
        )
    content = json.dumps(classes, indent=0, ensure_ascii=False) + "\n"
    put_beside(job, CLASSES, content.encode("utf-8", "backslashreplace"))


def _given(path: Path) -> list[str]:
    try:
        classes = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"--labels: cannot read '{path}' ({error}); write '{FROM_FOLDERS}', or name a "
            f"{CLASSES} that packing wrote"
        ) from error
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise UserError(f"--labels: '{path}' is no list of names")
    return classes


@cache
def _numbers(path: Path) -> dict[str, int]:
    return {name: number for number, name in enumerate(json.loads(path.read_text("utf-8")))}


def survey(job: Job, lot: Lot) -> Survey:
    """One piece per file; nothing is opened."""
    rows = [
        (number, lot.number, -1, 0, 0, 0, source.size, 0.0)
        for number, source in lot.items
        if 0 < source.size <= MAX_BYTES
    ]
    skipped = [
        (source.name, *_why_not(source.size))
        for _, source in lot.items
        if not 0 < source.size <= MAX_BYTES
    ]
    return Survey(np.array(rows, PIECE), skipped)


def _why_not(size: int) -> tuple[str, str]:
    if size <= 0:
        return ("empty image" if size == 0 else "cannot be read"), ""
    return f"a file of more than {MAX_BYTES:,} bytes", f"{size:,} bytes"


def read(job: Job, piece: Piece) -> Sample:
    """A picture that can be decoded to its end; its length is its longer side."""
    try:
        data = Path(piece.input.path).read_bytes()
    except OSError as error:
        raise BadSample("cannot be read", str(error.strerror)) from error
    data, kind, side = _checked(data, job.options.max_side)
    suffix = Path(piece.input.name).suffix.lower().removeprefix(".").replace("jpeg", "jpg")
    members = {_EXTENSIONS.get(kind, suffix): data}
    if job.options.labels:
        name = piece.input.name.partition("/")[0].encode("utf-8", "backslashreplace").decode()
        members["cls"] = str(_numbers(job.beside / CLASSES)[name]).encode()
    return Sample(members, side)


def _checked(data: bytes, max_side: int) -> tuple[bytes, str, int]:
    """The bytes of a picture, its format and its longer side."""
    try:
        with pixel_limit(ImageInputConfig.max_pixels):
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            kind, size = str(image.format), image.size
            if min(size) < 2:
                raise BadSample("image of one pixel's width or height", f"{size}")
            if max_side and max(size) > max_side:
                return (*_smaller(image, max_side), max_side)
            image.draft(image.mode, (1, 1))  # an eighth is enough to see whether all is there
            image.load()
    except BadSample:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadSample(f"more than {ImageInputConfig.max_pixels:,} pixels", str(error)) from error
    except UnidentifiedImageError as error:
        raise BadSample("undecodable image", f"none of {', '.join(FORMATS)}") from error
    except Exception as error:  # Pillow's plugins raise all sorts of things on corrupt bytes
        raise BadSample("undecodable image", str(error)) from error
    return data, kind, max(size)


def _smaller(image: Image.Image, max_side: int) -> tuple[bytes, str]:
    image.draft("RGB", (2 * max_side, 2 * max_side))
    image = upright_rgb(image)
    image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    if min(image.size) < 2:
        raise BadSample("image of one pixel's width or height", f"{image.size}")
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
    prepare=prepare,
)
