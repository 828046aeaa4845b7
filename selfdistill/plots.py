"""Pictures of curves: files of their own as SVG or PNG, and pieces of a page."""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib.style
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter
from PIL import Image

# Okabe and Ito's colours, which colour-blind readers tell apart; yellow is too light for a line
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GREY, GRID, INK = "#595959", "#E6E6E6", "#333333"
_MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES = ((0, (6, 3)), (0, (1.5, 2)))
_MAX_COLUMNS = 3
_MAX_IN_TWO_COLUMNS = 30
STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#B0B0B0",
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
    "font.size": 10,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "savefig.dpi": 150,
    "svg.hashsalt": "selfdistill",  # the same picture is the same file
    "text.parse_math": False,  # a folder's name may hold dollar signs
    "xtick.color": INK,
    "ytick.color": INK,
}


@dataclass(frozen=True)
class Curve:
    """Values over time; equally long sequences, in the order of time.

    Attributes:
        name: for the legend; curves of one name have one colour in all panels.
        at: minutes, or steps.
        values: of the run, or the mean of several; NaN leaves a gap.
        low: of the worst of several runs; empty: of one.
        high: of the best.
    """

    name: str
    at: Sequence[float]
    values: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()

    @property
    def has_band(self) -> bool:
        return self.low != self.high


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes:
        title: above it.
        levels: values that do not depend on time, by their names; dashed lines.
    """

    title: str
    curves: Sequence[Curve]
    levels: Mapping[str, float]


def draw(panels: Sequence[Panel], probe: str, file_format: str) -> bytes:
    """Accuracies, from 0 to 1, over minutes, three panels in a row.

    The same input gives the same bytes.

    Args:
        probe: whose accuracy it is, for the axis.
        file_format: ``svg`` or ``png``.
    """
    columns = min(len(panels), _MAX_COLUMNS)
    rows = math.ceil(len(panels) / columns)
    width = 7.0 if columns == 1 else 5.0 * columns
    names = dict.fromkeys(curve.name for panel in panels for curve in panel.curves)
    numbers = {name: number for number, name in enumerate(names)}
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(width, 4.6 * rows), layout="constrained")
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
        for place, panel in zip(axes, panels, strict=False):
            _draw_panel(place, panel, numbers)
            place.set_ylabel(f"{probe} probe: accuracy (%)")
            place.yaxis.set_major_formatter(FuncFormatter(percent))
        for place in axes[len(panels) :]:
            place.set_axis_off()
        return saved(figure, file_format)


def percent(value: float, _: object = None) -> str:
    """A share as a tick says it."""
    return f"{round(100 * value, 6):g}"


def saved(figure: Figure, file_format: str) -> bytes:
    """A figure as a file, without the date."""
    out = io.BytesIO()
    metadata = {"Date": None} if file_format == "svg" else None
    figure.savefig(out, format=file_format, metadata=metadata)
    return out.getvalue()


def pixels(png: bytes) -> np.ndarray:
    """Of a picture in a file, uint8 [height, width, 3]."""
    return np.array(Image.open(io.BytesIO(png)).convert("RGB"))


def _draw_panel(axes: Axes, panel: Panel, numbers: Mapping[str, int]) -> None:
    handles = draw_curves(axes, panel, numbers)
    if any(curve.has_band for curve in panel.curves):
        handles.append(Patch(color=GREY, alpha=0.18, linewidth=0, label="worst to best run"))
    axes.set_title(panel.title)
    axes.set_xlabel("minutes of training")
    axes.set_xlim(left=0)
    longest = max(len(str(handle.get_label())) for handle in handles)
    axes.legend(
        handles=handles,
        loc="upper center",
        bbox_to_anchor=(0.5, 0.0),
        borderaxespad=4.5,  # below the label of the axis, whatever the axes' height
        ncols=2 if longest <= _MAX_IN_TWO_COLUMNS else 1,
    )


def draw_curves(
    axes: Axes, panel: Panel, numbers: Mapping[str, int], markers: bool = True
) -> list[Artist]:
    """The curves and levels of a panel; returns what stands for each in a legend.

    Args:
        numbers: of the curves' names; they choose colours, markers and dashes.
        markers: whether points are marked where there are many, too.
    """
    handles: list[Artist] = []
    for curve in panel.curves:
        number = numbers[curve.name]
        colour = COLOURS[number % len(COLOURS)]
        handles += axes.plot(
            curve.at,
            curve.values,
            color=colour,
            marker=_MARKERS[number % len(_MARKERS)] if markers else "",
            linestyle=dashes(number),
            label=curve.name,
        )
        if curve.has_band:
            axes.fill_between(
                curve.at, curve.low, curve.high, color=colour, alpha=0.18, linewidth=1
            )
    for (name, level), style in zip(panel.levels.items(), DASHES, strict=False):
        handles.append(axes.axhline(level, color=GREY, linewidth=1.3, linestyle=style, label=name))
    return handles


def dashes(number: int) -> str:
    """The line of a curve: as soon as the colours are used up, the next ones are dashed."""
    return ("-", "--", ":", "-.")[number // len(COLOURS) % 4]
