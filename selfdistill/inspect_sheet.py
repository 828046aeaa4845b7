"""Samples on one sheet, as PNG or SVG, or each for itself."""

import io
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice

import matplotlib.style
from matplotlib.figure import Figure

from selfdistill.inspect_facts import Findings
from selfdistill.inspect_look import Subject
from selfdistill.modalities.picture import Area, Shown

WIDTH = 12.0
"""Inches of a sheet."""
MARGIN, GAP = 0.3, 0.22
HEADING, TITLE = 0.42, 0.22
LETTER = 0.062
"""Inches of a title's letter, about."""
STYLE = {
    "font.size": 8,
    "savefig.dpi": 150,
    "svg.hashsalt": "selfdistill",  # the same picture is the same file
    "text.parse_math": False,  # a key may hold dollar signs
}
Part = tuple[Subject, Findings]


@contextmanager
def _style() -> Iterator[None]:
    with matplotlib.style.context(["default", STYLE]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def heading(subject: Subject) -> str:
    """What the samples of a sheet are."""
    if subject.config is None or subject.picture.pipeline is None:
        return f"{subject.name}: as it is in the shards"
    masks = subject.config.mask.num_masks
    which = f", under the first of {masks} masks" if masks > 1 else ", with its mask"
    return f"{subject.name}: as training sees it{which}"


def sheet(parts: Sequence[Part], file_format: str) -> bytes:
    """The samples of all modalities, one below the other; equal input gives equal bytes.

    Args:
        file_format: ``png`` or ``svg``.
    """
    height = MARGIN + sum(_height(part) for part in parts)
    with _style():
        figure = Figure(figsize=(WIDTH, height), facecolor="white")
        top = height - MARGIN
        for part in parts:
            _draw_part(figure, part, top)
            top -= _height(part)
        return _saved(figure, file_format)


def picture(subject: Subject, shown: Shown, width: float) -> bytes:
    """One sample as PNG on no background, ``width`` inches wide."""
    with _style():
        figure = Figure(figsize=(width, subject.picture.height(shown, width)), facecolor="none")
        subject.picture.draw(Area(figure, 0, 0, *figure.get_size_inches()), shown)
        return _saved(figure, "png")


def _saved(figure: Figure, file_format: str) -> bytes:
    out = io.BytesIO()
    metadata = {"Date": None} if file_format == "svg" else None
    figure.savefig(out, format=file_format, metadata=metadata)
    return out.getvalue()


def _width(subject: Subject) -> float:
    """Of one sample."""
    columns = subject.picture.columns
    return (WIDTH - 2 * MARGIN - (columns - 1) * GAP) / columns


def _rows(part: Part) -> Iterator[tuple[list[Shown], float]]:
    """The samples of each row, and its height without titles."""
    subject, findings = part
    shown, width = iter(findings.shown), _width(subject)
    while row := list(islice(shown, subject.picture.columns)):
        yield row, max(subject.picture.height(sample, width) for sample in row)


def _height(part: Part) -> float:
    return HEADING + MARGIN / 2 + sum(TITLE + height + GAP for _, height in _rows(part))


def _draw_part(figure: Figure, part: Part, top: float) -> None:
    subject, width = part[0], _width(part[0])
    tall = float(figure.get_size_inches()[1])

    def write(left: float, up: float, text: str, size: float, weight: str = "normal") -> None:
        figure.text(left / WIDTH, up / tall, text, size=size, weight=weight, va="baseline")

    write(MARGIN, top - 0.2, heading(subject), 12, "bold")
    top -= HEADING
    for row, height in _rows(part):
        for column, shown in enumerate(row):
            left = MARGIN + column * (width + GAP)
            write(left, top - 0.14, _shortened(shown.title, math.floor(width / LETTER)), 8)
            own = subject.picture.height(shown, width)
            area = Area(figure, left, top - TITLE - own, width, own)
            subject.picture.draw(area, shown)
        top -= TITLE + height + GAP


def _shortened(text: str, most: int) -> str:
    text = "".join(c if c.isprintable() else "?" for c in text)
    if len(text) <= most:
        return text
    return f"{text[: most // 2 - 2]}...{text[len(text) - (most - most // 2) + 1 :]}"
