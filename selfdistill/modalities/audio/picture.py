"""Audio for people: the waveform above its log-mel picture, with masked spans shaded."""

from collections.abc import Mapping, Sequence
from math import prod

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgb

from selfdistill.config import RunConfig
from selfdistill.modalities.audio.data import AudioPipeline
from selfdistill.modalities.audio.encoder import receptive_field
from selfdistill.modalities.audio.spectrogram import log_mel
from selfdistill.modalities.picture import INK, MASKED, Area, SamplePicture, Shown, runs

BANDS = 64
POINTS = 1200
"""Columns of a waveform; more cannot be told apart."""
WAVE = "#3D85C6"
LOUD = "#2E74B5"
"""Of the log-mel picture, whose silence is transparent: seen on white and on a dark page."""
LEFT, RIGHT, BELOW, BETWEEN = 0.5, 0.12, 0.38, 0.06
"""Margins in inches."""
MEL_SHARE = 0.62
FLOOR = 8.0
"""Of the log-mel picture, below its loudest place (natural logarithm)."""


class AudioPicture(SamplePicture):
    extensions = AudioPipeline.extensions
    columns = 2

    def __init__(self, config: RunConfig) -> None:
        self.pipeline: AudioPipeline = AudioPipeline(config)
        self._rate = config.input.sampling_rate
        self._layers = config.encoder.conv_layers

    def decode(self, members: Mapping[str, bytes]) -> np.ndarray:
        return self.pipeline.decode(members)

    def measures(self, value: np.ndarray) -> dict[str, float]:
        return {"seconds": len(value) / self._rate}

    def height(self, shown: Shown, width: float) -> float:
        return 2.1

    def draw(self, area: Area, shown: Shown) -> None:
        wide, room = area.width - LEFT - RIGHT, area.height - BELOW - BETWEEN
        mel = MEL_SHARE * room
        below = area.axes(LEFT, BELOW, wide, mel)
        above = area.axes(LEFT, BELOW + mel + BETWEEN, wide, room - mel, sharex=below)
        self._draw_wave(above, shown.value)
        draw_mel(below, shown.value, self._rate)
        for axes in (above, below):
            axes.set_facecolor("none")
            lay_bare(axes)
        above.tick_params(labelbottom=False, bottom=False)
        above.set_xlim(0, len(shown.value) / self._rate)
        name_seconds(below)
        for first, last in runs(shown.masked) if shown.masked is not None else ():
            span = [frame_start(frame, self._layers) / self._rate for frame in (first, last)]
            for axes in (above, below):
                axes.axvspan(*span, color=MASKED, alpha=0.35, linewidth=0, zorder=-1)

    def _draw_wave(self, axes: Axes, wave: np.ndarray) -> None:
        step = max(len(wave) // POINTS, 1)
        starts = np.arange(0, len(wave), step)
        low, high = np.minimum.reduceat(wave, starts), np.maximum.reduceat(wave, starts)
        axes.fill_between(starts / self._rate, low, high, color=WAVE, linewidth=0.6)
        most = float(np.abs(wave).max()) or 1.0
        axes.set_ylim(-1.05 * most, 1.05 * most)
        axes.set_yticks([])


def frame_start(frame: int, conv_layers: Sequence[Sequence[int]]) -> float:
    """The sample at which a frame begins, taken as the middle part of what it sees."""
    hop = prod(layer[2] for layer in conv_layers)
    return frame * hop + (receptive_field(conv_layers) - hop) / 2


def lay_bare(axes: Axes) -> None:
    """Leave numbers and ticks, without a frame."""
    axes.grid(visible=False)
    axes.tick_params(colors=INK, labelsize=7, length=2.5)
    for spine in axes.spines.values():
        spine.set_visible(False)


def name_seconds(axes: Axes) -> None:
    axes.set_xlabel("seconds", color=INK, fontsize=7, labelpad=1)


def draw_mel(axes: Axes, wave: np.ndarray, rate: int) -> None:
    """The log-mel picture of a waveform float [L] over seconds."""
    bands = log_mel(wave, rate, BANDS).T
    top = max(float(bands.max()), 0.0)  # silence is white
    # windows of 25 ms every 10 ms: of each the middle
    start, end = 0.0075, 0.0075 + 0.01 * bands.shape[1]
    axes.imshow(
        bands,
        origin="lower",
        aspect="auto",
        cmap=LinearSegmentedColormap.from_list("", [(*to_rgb(LOUD), 0), LOUD]),
        extent=(start, end, -0.5, BANDS - 0.5),
        vmin=top - FLOOR,
        vmax=top,
        interpolation="nearest",
    )
    hertz = np.array([500, 1000, 2000, 4000, 8000, 16_000])
    hertz = hertz[hertz < 0.9 * rate / 2]
    mel = np.log1p(hertz / 700) / np.log1p(rate / 2 / 700)
    axes.set_yticks(mel * (BANDS + 1) - 1, [f"{h / 1000:g} kHz" for h in hertz])
