"""Pictures of curves over training time, as SVG or PNG."""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib.style
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

# Okabe and Ito's colours, which colour-blind readers tell apart; yellow is too light for a line
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P")
_DASHES = ((0, (6, 3)), (0, (1.5, 2)))
_GREY = "#595959"
_MAX_COLUMNS = 3
_MAX_IN_TWO_COLUMNS = 30
_STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#B0B0B0",
    "axes.grid": True,
    "axes.labelcolor": "#333333",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
    "font.size": 10,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.8,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "savefig.dpi": 150,
    "svg.hashsalt": "selfdistill",  # the same picture is the same file
    "text.parse_math": False,  # a folder's name may hold dollar signs
    "xtick.color": "#333333",
    "ytick.color": "#333333",
}


@dataclass(frozen=True)
class Curve:
    """Accuracy, from 0 to 1, over time; equally long sequences, in the order of time.

    Attributes:
        name: for the legend; curves of one name have one colour in all panels.
        minutes: of the evaluations.
        accuracy: of the run, or the mean of several.
        low: of the worst of several runs.
        high: of the best.
    """

    name: str
    minutes: Sequence[float]
    accuracy: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]

    @property
    def has_band(self) -> bool:
        return self.low != self.high


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes:
        title: above it.
        levels: accuracies that do not depend on time, by their names; dashed lines.
    """

    title: str
    curves: Sequence[Curve]
    levels: Mapping[str, float]


def draw(panels: Sequence[Panel], probe: str, file_format: str) -> bytes:
    """The panels side by side, three in a row; the same input gives the same bytes.

    Args:
        probe: whose accuracy it is, for the axis.
        file_format: ``svg`` or ``png``.
    """
    columns = min(len(panels), _MAX_COLUMNS)
    rows = math.ceil(len(panels) / columns)
    width = 7.0 if columns == 1 else 5.0 * columns
    names = dict.fromkeys(curve.name for panel in panels for curve in panel.curves)
    numbers = {name: number for number, name in enumerate(names)}
    with matplotlib.style.context(["default", _STYLE]):
        figure = Figure(figsize=(width, 4.6 * rows), layout="constrained")
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
        for place, panel in zip(axes, panels, strict=False):
            _draw_panel(place, panel, numbers)
            place.set_ylabel(f"{probe} probe: accuracy (%)")
        for place in axes[len(panels) :]:
            place.set_axis_off()
        out = io.BytesIO()
        metadata = {"Date": None} if file_format == "svg" else None
        figure.savefig(out, format=file_format, metadata=metadata)
    return out.getvalue()


def _draw_panel(axes: Axes, panel: Panel, numbers: Mapping[str, int]) -> None:
    handles: list[Artist] = []
    for curve in panel.curves:
        number = numbers[curve.name]
        colour = _COLOURS[number % len(_COLOURS)]
        marker = _MARKERS[number % len(_MARKERS)]
        percent = [100 * value for value in curve.accuracy]
        handles += axes.plot(curve.minutes, percent, color=colour, marker=marker, label=curve.name)
        if curve.has_band:
            low, high = ([100 * value for value in side] for side in (curve.low, curve.high))
            axes.fill_between(curve.minutes, low, high, color=colour, alpha=0.18, linewidth=1)
    for (name, level), dashes in zip(panel.levels.items(), _DASHES, strict=False):
        handles.append(
            axes.axhline(100 * level, color=_GREY, linewidth=1.3, linestyle=dashes, label=name)
        )
    if any(curve.has_band for curve in panel.curves):
        handles.append(Patch(color=_GREY, alpha=0.18, linewidth=0, label="worst to best run"))
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
