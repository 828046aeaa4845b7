"""Frame features of audio for people, below the log-mel picture: as colours over time, and how
alike the moments of a clip are."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from selfdistill.config import RunConfig
from selfdistill.modalities.audio.picture import draw_mel, frame_start, lay_bare, name_seconds
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
from selfdistill.modalities.picture import title_of

SECONDS = 8.0
"""Of a clip; more cannot be told apart."""
LEFT, BELOW, GAP = 0.62, 0.34, 0.05
MEL, STRIP, TITLE = 0.95, 0.26, 0.2
STRIPS, MATRICES = 4, 3
"""Clips of the two pictures."""


class AudioFeatures(FeaturePicture):
    samples = 32

    def __init__(self, config: RunConfig) -> None:
        self._rate = config.input.sampling_rate
        self._layers = config.encoder.conv_layers

    def draw(self, looks: Sequence[Look], origin: Sequence[str]) -> dict[str, Figure]:
        return {
            "principal_components_over_time": self._components(looks, origin),
            "similarity_of_moments": self._similarity(looks, origin),
        }

    def _components(self, looks: Sequence[Look], origin: Sequence[str]) -> Figure:
        how = (
            f"First three principal components of the frames of {len(looks)} clips as red, green "
            "and blue."
        )
        found = {encoder: as_colours(looks, encoder) for encoder in ENCODERS}
        shown, columns = looks[:STRIPS], 2
        tall = TITLE + MEL + 2 * (GAP + STRIP) + BELOW
        rows = -(-len(shown) // columns)
        area = sheet(rows * tall, "What the moments have in common", [*origin, how])
        across = area.width / columns
        for number, look in enumerate(shown):
            row, column = divmod(number, columns)
            left, up = column * across + LEFT, (rows - 1 - row) * tall + BELOW
            wide = across - LEFT - 0.08
            strips = []
            for place, encoder in enumerate(ENCODERS):
                bottom = up + (1 - place) * (STRIP + GAP)
                axes = area.axes(left, bottom, wide, STRIP)
                colours = self._kept(found[encoder][number])
                axes.imshow(
                    colours[None],
                    aspect="auto",
                    extent=(*self._span(len(colours)), 0, 1),
                    interpolation="nearest",
                )
                axes.set_yticks([0.5], [encoder])
                strips.append(axes)
            above = area.axes(left, up + 2 * (STRIP + GAP), wide, MEL)
            self._draw_mel(above, look)
            for axes in (above, *strips):
                self._bare(axes, look)
            for axes in (above, strips[0]):
                axes.tick_params(labelbottom=False, bottom=False)
            name_seconds(strips[-1])
        return area.figure

    def _similarity(self, looks: Sequence[Look], origin: Sequence[str]) -> Figure:
        lines = [
            "Cosine between the frames of a clip, over time in both directions, after the mean of "
            f"the frames of {len(looks)}",
            "clips is taken off: 1 alike, 0 unrelated, -1 opposite.",
        ]
        found = {encoder: directions(looks, encoder) for encoder in ENCODERS}
        shown = looks[:MATRICES]
        across = (WIDTH - 2 * MARGIN) / MATRICES
        side = across - LEFT - 0.06
        tall = TITLE + MEL + 2 * (GAP + side) + BELOW
        area = sheet(tall + BAR, "Which moments are alike", [*origin, *lines])
        for number, look in enumerate(shown):
            left = number * across + LEFT
            for place, encoder in enumerate(ENCODERS):
                bottom = BAR + BELOW + (1 - place) * (side + GAP)
                axes = area.axes(left, bottom, side, side)
                x = self._kept(found[encoder][number])
                span = self._span(len(x))
                axes.imshow(
                    x @ x.T,
                    origin="lower",
                    aspect="auto",
                    extent=(*span, *span),
                    cmap=ALIKE,
                    vmin=-1,
                    vmax=1,
                    interpolation="nearest",
                )
                self._bare(axes, look)
                axes.set_ylim(*axes.get_xlim())
                axes.set_ylabel(encoder, fontsize=8)
                axes.xaxis.set_major_locator(MaxNLocator(4))
                axes.yaxis.set_major_locator(MaxNLocator(4, prune="upper"))
                axes.tick_params(labelbottom=place == 1, bottom=place == 1)
            name_seconds(axes)
            above = area.axes(left, BAR + BELOW + 2 * (side + GAP), side, MEL)
            self._draw_mel(above, look)
            self._bare(above, look)
            above.tick_params(labelbottom=False, bottom=False)
        cosine_bar(area, LEFT, 0.06)
        return area.figure

    def _kept(self, x: np.ndarray) -> np.ndarray:
        """The frames of the first ``SECONDS``."""
        hop = frame_start(1, self._layers) - frame_start(0, self._layers)
        return x[: int(SECONDS * self._rate / hop)]

    def _span(self, frames: int) -> tuple[float, float]:
        """Where the first frame begins and the last one ends, in seconds."""
        ends = [frame_start(frame, self._layers) / self._rate for frame in (0, frames)]
        return ends[0], ends[1]

    def _draw_mel(self, axes: Axes, look: Look) -> None:
        draw_mel(axes, look.example[: int(SECONDS * self._rate)], self._rate)
        axes.set_title(title_of(look.key, look.label)[:40], fontsize=8, pad=3)

    def _bare(self, axes: Axes, look: Look) -> None:
        axes.set_xlim(0, min(len(look.example) / self._rate, SECONDS))
        lay_bare(axes)
