"""Samples on one sheet, as PNG or SVG, or each for itself."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import matplotlib.style
from matplotlib.figure import Figure

from selfdistill.inspection.facts import Findings
from selfdistill.inspection.look import Subject
from selfdistill.modalities.picture import Area, Shown
from selfdistill.pictures.examples import Grid
from selfdistill.plots import saved

WIDTH = 12.0
"""Inches of a sheet."""
MARGIN, HEADING = 0.3, 0.42
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
        return saved(figure, file_format)


def picture(subject: Subject, shown: Shown, width: float) -> bytes:
    """One sample as PNG on no background, ``width`` inches wide."""
    with _style():
        figure = Figure(figsize=(width, subject.picture.height(shown, width)), facecolor="none")
        subject.picture.draw(Area(figure, 0, 0, *figure.get_size_inches()), shown)
        return saved(figure, "png")


def _grid(part: Part) -> Grid:
    subject, findings = part
    return Grid(subject.picture, findings.shown, WIDTH - 2 * MARGIN)


def _height(part: Part) -> float:
    return HEADING + MARGIN / 2 + _grid(part).height


def _draw_part(figure: Figure, part: Part, top: float) -> None:
    place = MARGIN / WIDTH, (top - 0.2) / float(figure.get_size_inches()[1])
    figure.text(*place, heading(part[0]), size=12, weight="bold", va="baseline")
    _grid(part).draw(figure, MARGIN, top - HEADING)
