"""Patch features of images for people: as colours, and how alike they are to one patch."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from selfdistill.config import RunConfig
from selfdistill.modalities.image.pixels import STEPS
from selfdistill.modalities.learned import (
    ALIKE,
    BAR,
    ENCODERS,
    MARGIN,
    WIDTH,
    FeaturePicture,
    Look,
    as_colours,
    cosine_bar,
    directions,
    sheet,
)
from selfdistill.modalities.picture import MASKED, Area

SHOWN = 6
NAMES = 0.75
"""Inches for the names of the rows."""
GAP = 0.06


class ImageFeatures(FeaturePicture):
    samples = 64

    def __init__(self, config: RunConfig) -> None:
        patch = config.encoder.patch_size
        self._grid = config.input.size[0] // patch, config.input.size[1] // patch

    def draw(self, looks: Sequence[Look], origin: Sequence[str]) -> dict[str, Figure]:
        return {
            "principal_components_of_patches": self._components(looks, origin),
            "similarity_to_one_patch": self._similarity(looks, origin),
        }

    def _components(self, looks: Sequence[Look], origin: Sequence[str]) -> Figure:
        how = (
            f"First three principal components of the patches of {len(looks)} images as red, green "
            "and blue."
        )
        rows = [[self._pixels(look) for look in looks[:SHOWN]]]
        for encoder in ENCODERS:
            found = as_colours(looks, encoder)[:SHOWN]
            rows.append([colours.reshape(*self._grid, 3) for colours in found])
        area = sheet(self._height(), "What the patches have in common", [*origin, how])
        self._draw_rows(area, rows)
        return area.figure

    def _similarity(self, looks: Sequence[Look], origin: Sequence[str]) -> Figure:
        shown = looks[:SHOWN]
        chosen = [self._chosen(look) for look in shown]
        rows = [[self._pixels(look) for look in shown]]
        for encoder in ENCODERS:
            found = zip(directions(looks, encoder), chosen, strict=False)
            rows.append([(x @ x[patch]).reshape(self._grid) for x, patch in found])
        lines = [
            "Cosine to the framed patch, the centre of mass of the image's contrast, after the "
            "mean of the patches",
            f"of {len(looks)} images is taken off: 1 alike, 0 unrelated, -1 opposite.",
        ]
        area = sheet(self._height() + BAR, "Which patches are alike", [*origin, *lines])
        above = Area(area.figure, area.left, area.bottom + BAR, area.width, area.height - BAR)
        self._draw_rows(above, rows, chosen)
        cosine_bar(area, NAMES)
        return area.figure

    def _pixels(self, look: Look) -> np.ndarray:
        """float [height, width, 3] from 0 to 1."""
        pixels: np.ndarray = look.example.transpose(1, 2, 0) / STEPS
        return pixels

    def _chosen(self, look: Look) -> int:
        """The patch at the centre of mass of the distance from the mean colour."""
        pixels = self._pixels(look)
        contrast = np.square(pixels - pixels.mean(axis=(0, 1))).sum(axis=2)
        contrast += np.finfo(float).tiny  # an image of one colour has its centre
        down, across = _centre(contrast)
        rows, columns = self._grid
        return int(down * rows) * columns + int(across * columns)

    def _side(self) -> tuple[float, float]:
        """Height and width of one image in inches."""
        wide = (WIDTH - 2 * MARGIN - NAMES - (SHOWN - 1) * GAP) / SHOWN
        return wide * self._grid[0] / self._grid[1], wide

    def _height(self) -> float:
        return 3 * self._side()[0] + 2 * GAP

    def _draw_rows(
        self, area: Area, rows: Sequence[Sequence[np.ndarray]], framed: Sequence[int] = ()
    ) -> None:
        tall, wide = self._side()
        for row, (name, pictures) in enumerate(zip(("image", *ENCODERS), rows, strict=True)):
            up = area.height - (row + 1) * tall - row * GAP
            place = (area.left, area.bottom + up + tall / 2)
            x, y = place / area.figure.get_size_inches()
            area.figure.text(x, y, name, size=9, va="center")
            for column, picture in enumerate(pictures):
                axes = area.axes(NAMES + column * (wide + GAP), up, wide, tall)
                axes.set_axis_off()
                axes.imshow(
                    picture, interpolation="nearest", aspect="auto", cmap=ALIKE, vmin=-1, vmax=1
                )
                if framed:
                    down, across = divmod(framed[column], self._grid[1])
                    high, broad = np.array(picture.shape[:2]) / self._grid
                    corner = across * broad - 0.5, down * high - 0.5
                    axes.add_patch(
                        Rectangle(corner, broad, high, fill=False, edgecolor=MASKED, lw=1.6)
                    )


def _centre(weights: np.ndarray) -> tuple[float, float]:
    """Centre of mass of [h, w], each from 0 to below 1."""
    height, width = weights.shape
    total = weights.sum()
    down = (weights.sum(axis=1) * (np.arange(height) + 0.5)).sum() / total / height
    across = (weights.sum(axis=0) * (np.arange(width) + 0.5)).sum() / total / width
    return float(down), float(across)
