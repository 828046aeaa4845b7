"""Curves with their healthy bands, as pieces of SVG whose colours are those of the page."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from math import floor, isfinite, log10, nan

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from selfdistill.health.bands import Band
from selfdistill.plots import (
    COLOURS,
    GREY,
    GRID,
    INK,
    STYLE,
    Curve,
    Panel,
    draw_curves,
    percent,
    saved,
)

WIDTH, HEIGHT = 3.6, 1.9
"""Inches. A card of the page shows them a third larger."""
_GOOD, _BAD = "#2FA35A", "#D4351C"
_EDGE = "#B0B0B0"
_STYLE = {
    **STYLE,
    "font.size": 8.5,
    "lines.linewidth": 1.5,
    "lines.markersize": 3.5,
    "svg.fonttype": "none",
    "xtick.major.size": 2.5,
    "ytick.major.size": 0.0,
    "axes.spines.left": False,
}
_VARIABLES = {
    **{colour.lower(): f"var(--c{number})" for number, colour in enumerate(COLOURS)},
    GREY.lower(): "var(--faint)",
    GRID.lower(): "var(--grid)",
    INK.lower(): "var(--faint)",
    _EDGE.lower(): "var(--line)",
    _GOOD.lower(): "var(--good)",
    _BAD.lower(): "var(--bad)",
}
_MOST_POINTS = 300
_FEW_POINTS = 12
_REACH = 100.0
"""How far, as a factor, a limit may be from the values and still be shown on a logarithmic axis."""


@dataclass(frozen=True)
class Chart:
    """What is drawn on one pair of axes.

    Attributes:
        title: for those who cannot see it.
        curves: over steps.
        bands: of the curves that have one, by their names.
        levels: values that do not depend on the step, by name.
        share: whether values are shares, to be written as percent.
        logarithmic: whether the axis of the values is, where they span enough.
    """

    title: str
    curves: Sequence[Curve]
    bands: Mapping[str, Band] = field(default_factory=dict)
    levels: Mapping[str, float] = field(default_factory=dict)
    share: bool = False
    logarithmic: bool = False


def svg(chart: Chart, numbers: Mapping[str, int], prefix: str) -> str:
    """A chart as an element of a page; nothing in it comes from a run but numbers.

    Args:
        numbers: of the curves' names; they choose colours and dashes.
        prefix: of the ids, which must differ over a page.
    """
    with matplotlib.style.context(["default", _STYLE]):
        figure = Figure(figsize=(WIDTH, HEIGHT), facecolor="none")
        axes = figure.subplots()
        axes.set_facecolor("none")
        chart = thinned(chart)
        points = max((sum(map(isfinite, curve.values)) for curve in chart.curves), default=0)
        draw_curves(axes, Panel("", chart.curves, chart.levels), numbers, points <= _FEW_POINTS)
        low, high, logarithmic = _limits(chart)
        if logarithmic:
            axes.set_yscale("log")
        axes.set_ylim(low, high)
        _mark(axes, chart, numbers, low, high)
        _label(axes, chart, logarithmic)
        figure.subplots_adjust(left=0.145, right=0.985, top=0.965, bottom=0.135)
        drawn = saved(figure, "svg").decode()
    return _as_element(drawn, chart.title, prefix)


def thinned(chart: Chart) -> Chart:
    """At most some 300 lines of each curve and its band, see ``_kept``."""
    curves: list[Curve] = []
    bands: dict[str, Band] = {}
    for curve in chart.curves:
        band = chart.bands.get(curve.name)
        kept = _kept(curve, band)
        curves.append(Curve(curve.name, _at(curve.at, kept), _at(curve.values, kept)))
        if band is not None:
            bands[curve.name] = replace(band, low=_at(band.low, kept), high=_at(band.high, kept))
    return replace(chart, curves=curves, bands=bands)


def _at(values: Sequence[float], lines: Sequence[int]) -> list[float]:
    return [values[line] for line in lines]


def _kept(curve: Curve, band: Band | None) -> Sequence[int]:
    """Of each stretch of a long curve the lowest line, the highest, the last, and the last of those
    outside the band."""
    count = len(curve.at)
    if count <= _MOST_POINTS:
        return range(count)
    stretch = -(-3 * count // _MOST_POINTS)
    kept: set[int] = {0}
    for begin in range(0, count, stretch):
        lines = range(begin, min(begin + stretch, count))
        known = [line for line in lines if isfinite(curve.values[line])]
        kept |= {lines[-1]}
        if known:
            kept |= {max(known, key=curve.values.__getitem__)}
            kept |= {min(known, key=curve.values.__getitem__)}
        if band is not None:
            kept |= {*[line for line in known if band.is_out(line, curve.values[line])][-1:]}
    return sorted(kept)


def _limits(chart: Chart) -> tuple[float, float, bool]:
    """The ends of the axis of values, and whether it is logarithmic."""
    values = [value for curve in chart.curves for value in curve.values if isfinite(value)]
    values += chart.levels.values()
    low, high = min(values, default=0.0), max(values, default=1.0)
    edges = [
        edge
        for band in chart.bands.values()
        for side in (band.low, band.high)
        for edge in side
        if isfinite(edge)
    ]
    if chart.logarithmic and low > 0:
        near = [edge for edge in edges if low / _REACH <= edge <= high * _REACH and edge > 0]
        low, high = min([low, *near]), max([high, *near])
        if high / low >= 10:
            return low / 1.25, high * 1.25, True
    else:
        span = max(high - low, 0.5 * abs(high))
        near = [edge for edge in edges if low - span <= edge <= high + span]
        low, high = min([low, *near]), max([high, *near])
    # what hardly changes should look like it
    pad = max(0.08 * (high - low), 0.04 * abs(high)) or 1.0
    return (low - pad if low < 0 or low > pad else min(low, -pad / 4)), high + pad, False


def _mark(
    axes: Axes, chart: Chart, numbers: Mapping[str, int], lowest: float, highest: float
) -> None:
    """The healthy band, or with several curves the limits of each, and what is outside."""
    for curve in chart.curves:
        band = chart.bands.get(curve.name)
        if band is None:
            continue
        low = [max(value, lowest) if value == value else nan for value in band.low]
        high = [min(value, highest) if value == value else nan for value in band.high]
        high = [nan if a != a else b for a, b in zip(low, high, strict=True)]
        alone = len(chart.curves) == 1
        colour = _GOOD if alone else COLOURS[numbers[curve.name] % len(COLOURS)]
        if alone:
            # points of equal weight at both ends: the band of a single line shows as well
            axes.fill_between(curve.at, low, high, color=_GOOD, alpha=0.13, linewidth=0)
        for side in (band.low, band.high):
            edge = [value if isfinite(value) else nan for value in side]
            if any(map(isfinite, edge)):
                axes.plot(curve.at, edge, color=colour, linewidth=0.9, linestyle=(0, (2, 2)))
        outside = [line for line, value in enumerate(curve.values) if band.is_out(line, value)]
        if outside:
            axes.plot(
                [curve.at[line] for line in outside],
                [curve.values[line] for line in outside],
                color=_BAD,
                linestyle="",
                marker="o",
                markersize=3,
            )


def _label(axes: Axes, chart: Chart, logarithmic: bool) -> None:
    last = max((curve.at[-1] for curve in chart.curves if len(curve.at)), default=1)
    axes.set_xlim(0, max(last, 1) * 1.02)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10], integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_count(value)))
    axes.tick_params(axis="y", pad=3)
    if logarithmic:
        low, high = axes.get_ylim()
        decades = log10(high / low)
        fine = (1.0, 2.0, 5.0) if decades < 2.2 else (1.0,)
        axes.yaxis.set_major_locator(LogLocator(subs=fine, numticks=6))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        values = [value for curve in chart.curves for value in curve.values if isfinite(value)]
        # of what is counted there is no half
        whole = all(value % 1 == 0 for value in values)
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=whole))
    largest = max(map(abs, axes.get_ylim()))
    text = percent if chart.share else lambda value, _: _number(value, largest)
    axes.yaxis.set_major_formatter(FuncFormatter(text))


def _number(value: float, largest: float) -> str:
    """A tick, written like the others of its axis."""
    if largest >= 10_000:
        return short_count(value)
    if value and (largest < 0.01 or abs(value) < 1e-3):
        mantissa, _, exponent = f"{value:.3e}".partition("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.5g}"


def short_count(value: float) -> str:
    """A number of steps in few letters."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 10 * unit or (abs(value) >= unit and floor(value) % (unit / 10) == 0):
            return f"{value / unit:.4g}{name}"
    return f"{value:,.0f}"


def _as_element(drawn: str, title: str, prefix: str) -> str:
    drawn = drawn[drawn.index("<svg") :].strip()
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r'<style type="text/css">.*?</style>', "", drawn, flags=re.DOTALL)
    drawn = re.sub(r"<!--.*?-->", "", drawn, flags=re.DOTALL)
    box = re.search(r'viewBox="([^"]+)"', drawn)
    assert box is not None
    head = f'<svg class="chart" viewBox="{box[1]}" role="img" aria-label="{escape(title)}">'
    drawn = head + drawn[drawn.index(">") + 1 :]
    drawn = re.sub(r"#[0-9a-f]{6}\b", lambda found: _VARIABLES.get(found[0], found[0]), drawn)
    drawn = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", drawn)
    drawn = re.sub(r"font-family: [^;\"]*; ", "", drawn)
    drawn = re.sub(r'\bid="', f'id="{prefix}', drawn)
    drawn = re.sub(r"url\(#", f"url(#{prefix}", drawn)
    drawn = re.sub(r'xlink:href="#', f'href="#{prefix}', drawn)
    return re.sub(r">\s+<", "><", drawn)
