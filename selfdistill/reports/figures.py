"""The figures of runs as cards: a curve with its healthy band, what it means, and what to try."""

from collections.abc import Mapping, Sequence
from html import escape
from itertools import count
from math import isfinite

from selfdistill.health.bands import Band
from selfdistill.health.figures import Figure, family_of, figure_of
from selfdistill.health.verdict import Finding
from selfdistill.plots import COLOURS, Curve
from selfdistill.reports.assess import Group
from selfdistill.reports.chart import Chart, svg
from selfdistill.reports.html import advice, key, sentence

Runs = Mapping[str, Sequence[Group]]
"""The groups of each run, by the run's name."""


def health(runs: Runs, numbers: Mapping[str, int], ids: "count[int]") -> str:
    """The cards of all figures that the runs have, by modality.

    Args:
        runs: one or several.
        numbers: of the runs' names, for the curves' colours.
        ids: for the charts' ids, which must differ over a page.
    """
    names = dict.fromkeys(group.name for found in runs.values() for group in found)
    blocks = []
    for name in names:
        groups = {
            run: group for run, found in runs.items() for group in found if group.name == name
        }
        heading = f"<h4>{escape(name or 'the whole run')}</h4>\n" if len(names) > 1 else ""
        cards = _one(groups, ids) if len(runs) == 1 else _several(groups, numbers, ids)
        blocks.append(f'{heading}<div class="grid">\n{cards}</div>\n')
    return "".join(blocks)


def _one(groups: Mapping[str, Group], ids: "count[int]") -> str:
    (group,) = groups.values()
    return "".join(
        _card(group, keys[0], ids) if len(keys) == 1 else _family(group, keys, ids)
        for keys in group.families()
    )


def _card(group: Group, name: str, ids: "count[int]") -> str:
    figure, band, log = figure_of(name), group.bands.get(name), group.log
    curve = Curve("", log.steps, log.values[name])
    chart = Chart(
        figure.title,
        [curve],
        {} if band is None else {"": band},
        share=figure.is_share,
        logarithmic=figure.logarithmic,
    )
    finding = group.finding(name)
    state = f" is-out {finding.status}" if finding else ""
    title = _title(figure, name)
    return (
        f'<article class="card figure{state}">\n<header><h3>{escape(title)}</h3>'
        f"<b>{escape(figure.written(log.last(name)))}</b></header>\n"
        f"{svg(chart, {'': 0}, f'p{next(ids)}-')}\n{_words(figure, band, finding)}</article>\n"
    )


def _title(figure: Figure, name: str) -> str:
    member = family_of(name)[1]
    return f"{figure.title}: {member}" if member else figure.title


def _words(figure: Figure, band: Band | None = None, finding: Finding | None = None) -> str:
    lines = [f'<p class="small alarm">{sentence(finding.text)}</p>\n'] if finding else []
    if figure.meaning:
        lines.append(f'<p class="small">{escape(figure.meaning)}</p>\n')
    if band is not None:
        lines.append(f'<p class="small faint">{sentence(_limits(figure, band))}</p>\n')
    # a loss that is not finite is found at a figure whose own advice is against a collapse
    to_try = (finding.advice if finding else "") or figure.advice
    if band is not None and to_try:
        lines.append(
            f'<details class="small"{" open" if finding else ""}><summary>What to try outside it'
            f"</summary><p>{advice(to_try)}</p></details>\n"
        )
    return "".join(lines)


def _limits(figure: Figure, band: Band) -> str:
    """The band of the last line, in words."""
    judged = [line for line, low in enumerate(band.low) if low == low]
    if not judged:
        return f"Its band is not in force yet ({band.why}; guard.after_steps)"
    low, high = band.low[judged[-1]], band.high[judged[-1]]
    if isfinite(low) and isfinite(high):
        limits = f"from {figure.written(low)} to {figure.written(high)}"
    elif isfinite(low):
        limits = f"at least {figure.written(low)}"
    elif isfinite(high):
        limits = f"at most {figure.written(high)}"
    else:
        return "Healthy band: not known before some lines were logged"
    return f"Healthy: {limits} ({band.why})"


def _family(group: Group, keys: Sequence[str], ids: "count[int]") -> str:
    """Figures of one name, as of the layers, on one pair of axes."""
    figure, log = figure_of(keys[0]), group.log
    most = min(len(keys), len(COLOURS))
    keys = [keys[round(i * (len(keys) - 1) / (most - 1))] for i in range(most)]
    names = [family_of(name)[1] for name in keys]
    part = "block" if names[0].isdigit() else "part"
    numbers = {name: number for number, name in enumerate(names)}
    curves = [
        Curve(name, log.steps, log.values[key]) for name, key in zip(names, keys, strict=True)
    ]
    chart = Chart(figure.title, curves, share=figure.is_share, logarithmic=figure.logarithmic)
    return (
        f'<article class="card figure">\n<header>'
        f"<h3>{escape(figure.title)}, by {part}</h3></header>\n"
        f"{svg(chart, numbers, f'p{next(ids)}-')}\n{key(names, numbers)}"
        f"{_words(figure)}</article>\n"
    )


def _several(groups: Mapping[str, Group], numbers: Mapping[str, int], ids: "count[int]") -> str:
    keys = dict.fromkeys(name for group in groups.values() for name in group.names())
    return "".join(_overlay(name, groups, numbers, ids) for name in keys)


def _overlay(
    name: str, groups: Mapping[str, Group], numbers: Mapping[str, int], ids: "count[int]"
) -> str:
    figure = figure_of(name)
    having = {run: group for run, group in groups.items() if name in group.log.values}
    curves = [Curve(run, group.log.steps, group.log.values[name]) for run, group in having.items()]
    bands = {run: group.bands[name] for run, group in having.items() if name in group.bands}
    chart = Chart(
        figure.title, curves, bands, share=figure.is_share, logarithmic=figure.logarithmic
    )
    title = _title(figure, name)
    out = "".join(
        f'<p class="small alarm">{escape(run)}: {sentence(finding.text)}</p>\n'
        for run, group in having.items()
        if (finding := group.finding(name)) is not None
    )
    state = " is-out look" if out else ""
    words = f'<p class="small">{escape(figure.meaning)}</p>\n' if figure.meaning else ""
    return (
        f'<article class="card figure{state}">\n<header><h3>{escape(title)}</h3></header>\n'
        f"{svg(chart, numbers, f'p{next(ids)}-')}\n{key(having, numbers)}{words}{out}</article>\n"
    )
