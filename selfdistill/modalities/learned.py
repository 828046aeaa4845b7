"""How people are shown what an encoder makes of the samples of a modality."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from selfdistill.modalities.picture import INK, Area

WIDTH = 7.0
"""Inches of every picture: two of them stand side by side on a page."""
MARGIN = 0.12
HEADING, LINE = 0.32, 0.175
BAR = 0.42
"""Inches that ``cosine_bar`` takes."""
ALIKE = "RdBu_r"
"""The colours of cosines."""
ENCODERS = ("untrained", "trained")
"""In the order in which they are drawn."""


@dataclass(frozen=True)
class Look:
    """One sample as the encoders see it.

    Attributes:
        key: its name in its shard.
        label: its class; None: it has none.
        example: what ``InputPipeline.plain`` made of it.
        tokens: float32 [T, D] of its tokens at one layer, by the names in ``ENCODERS``.
    """

    key: str
    label: int | None
    example: np.ndarray
    tokens: Mapping[str, np.ndarray]


class FeaturePicture(ABC):
    """Draws the token features of samples.

    Attributes:
        samples: how many it can use; it works with fewer, down to one.
    """

    samples: int

    @abstractmethod
    def draw(self, looks: Sequence[Look], origin: Sequence[str]) -> dict[str, Figure]:
        """Figures by their names, words joined by ``_``, made with ``sheet``.

        Args:
            looks: samples in random order, of many classes where they have any.
            origin: lines that say which samples and encoders these are, for ``sheet``.
        """


def sheet(height: float, title: str, lines: Sequence[str]) -> Area:
    """A new figure under a heading, and the area below it of this height in inches."""
    top = HEADING + LINE * len(lines) + MARGIN
    figure = Figure(figsize=(WIDTH, top + height + MARGIN), facecolor="white")
    total = top + height + MARGIN

    def write(down: float, text: str, size: float, colour: str, weight: str) -> None:
        place = MARGIN / WIDTH, 1 - down / total
        figure.text(*place, text, size=size, color=colour, weight=weight, va="baseline")

    write(0.26, title, 11, "black", "bold")
    for number, line in enumerate(lines, start=1):
        write(0.26 + LINE * number, line, 8.5, INK, "normal")
    return Area(figure, MARGIN, MARGIN, WIDTH - 2 * MARGIN, height)


def cosine_bar(area: Area, left: float, right: float = 0.0) -> None:
    """What the colours of ``ALIKE`` from -1 to 1 mean, in the lowest ``BAR`` inches of an area."""
    bar = area.axes(left, 0.24, area.width - left - right, 0.08)
    scale = ScalarMappable(Normalize(-1, 1), ALIKE)
    area.figure.colorbar(scale, cax=bar, orientation="horizontal", ticks=[-1, -0.5, 0, 0.5, 1])
    bar.tick_params(labelsize=7, colors=INK, length=2)


def principal(x: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Principal components of rows, each with the sign that gives it a long positive tail.

    Args:
        x: float [N, D].
        count: how many; those that x does not have are 0.

    Returns:
        float64 [N, count] and their shares of the variance, float64 [count].
    """
    x = x.astype(np.float64)
    x -= x.mean(axis=0)
    values, vectors = np.linalg.eigh(x.T @ x)
    found = x @ vectors[:, ::-1][:, :count]
    found *= np.where((found**3).sum(axis=0) < 0, -1, 1)
    shares = values[::-1][:count].clip(0) / max(values.clip(0).sum(), np.finfo(float).tiny)
    missing = count - found.shape[1]
    return np.pad(found, ((0, 0), (0, missing))), np.pad(shares, (0, missing))


def as_colours(looks: Sequence[Look], encoder: str) -> list[np.ndarray]:
    """The first three principal components of all tokens as red, green and blue.

    Returns:
        float [T, 3] from 0 to 1 for each look; the outer 2 % of each component are cut off.
    """
    tokens = [look.tokens[encoder] for look in looks]
    found, _ = principal(np.concatenate(tokens), 3)
    low, high = np.percentile(found, (2, 98), axis=0)
    colours = ((found - low) / np.maximum(high - low, np.finfo(float).tiny)).clip(0, 1)
    return np.split(colours, np.cumsum([len(x) for x in tokens])[:-1])


def directions(looks: Sequence[Look], encoder: str) -> list[np.ndarray]:
    """Tokens of length 1 after the mean of all is taken off; what all share tells nothing.

    Returns:
        float [T, D] for each look; their products are cosines.
    """
    tokens = [look.tokens[encoder] for look in looks]
    x = np.concatenate(tokens)
    x = unit(x - x.mean(axis=0))
    return np.split(x, np.cumsum([len(part) for part in tokens])[:-1])


def unit(x: np.ndarray) -> np.ndarray:
    """Rows of x [N, D] at length 1; those of 0 stay."""
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.finfo(np.float32).tiny)
