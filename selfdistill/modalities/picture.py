"""How people are shown the samples of a modality."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from selfdistill.data.pipeline import InputPipeline

INK = "#767676"
"""Legible on white and on a dark page."""
MASKED = "#E07B00"


@dataclass(frozen=True)
class Shown:
    """One sample to be shown.

    Attributes:
        key: its name in its shard.
        label: its class; None: it has none.
        value: what ``SamplePicture.decode`` gave, or the training example that was made of it.
        masked: bool [T], what the first mask of the example hides; None: ``value`` is no example.
    """

    key: str
    label: int | None
    value: Any
    masked: np.ndarray | None

    @property
    def title(self) -> str:
        return title_of(self.key, self.label)


def title_of(key: str, label: int | None) -> str:
    """What stands above a sample."""
    return key if label is None else f"{key}, label {label}"


@dataclass(frozen=True)
class Area:
    """A part of a figure to draw in, in inches; its background may be white or dark."""

    figure: Figure
    left: float
    bottom: float
    width: float
    height: float

    def axes(self, left: float, bottom: float, width: float, height: float, **more: Any) -> Axes:
        """Axes in a part of it, in inches from its lower left corner."""
        across, up = self.figure.get_size_inches()
        place = ((self.left + left) / across, (self.bottom + bottom) / up)
        return self.figure.add_axes((*place, width / across, height / up), **more)


class SamplePicture(ABC):
    """Reads, measures and draws samples.

    Attributes:
        extensions: members that it reads, as ``InputPipeline.extensions``.
        pipeline: what makes training examples; None: it cannot be had, ``note`` says why.
        note: what people should know of the pictures.
        columns: samples side by side on a sheet.
    """

    extensions: Sequence[str]
    pipeline: InputPipeline | None
    note: str = ""
    columns: int = 1

    @abstractmethod
    def decode(self, members: Mapping[str, bytes]) -> Any:
        """The sample's value; raises ``BadSample``. Where there is a pipeline it makes examples of
        it, so it is what ``InputPipeline.decode`` gives."""

    @abstractmethod
    def measures(self, value: Any) -> dict[str, float]:
        """What ``decode`` gave, in numbers, by names with their units; the foremost first. The
        length of a modality that has one is named by its ``length_unit``."""

    @abstractmethod
    def height(self, shown: Shown, width: float) -> float:
        """Inches that the drawing of a sample needs at a width in inches."""

    @abstractmethod
    def draw(self, area: Area, shown: Shown) -> None:
        """Draw a sample into an area of the height that was asked for."""

    def html(self, shown: Shown) -> str | None:
        """The sample as HTML in place of the drawing; None: the drawing is shown."""
        return None


def runs(masked: np.ndarray) -> Iterator[tuple[int, int]]:
    """First and last + 1 of each run of True in bool [T]."""
    edges = np.flatnonzero(np.diff(masked.astype(np.int8), prepend=0, append=0)).tolist()
    return zip(edges[::2], edges[1::2], strict=True)


def marked(pieces: Sequence[tuple[str, str]]) -> str:
    """Pairs of a CSS class (or none) and text, as HTML."""
    return "".join(
        f'<span class="{name}">{escape(text)}</span>' if name else escape(text)
        for name, text in pieces
    )
