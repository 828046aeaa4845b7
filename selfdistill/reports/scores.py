"""What the probes read from the encoders of runs: bars, curves and tables."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import count
from math import hypot, isfinite, nan
from typing import Any

from selfdistill.plots import Curve
from selfdistill.probes.table import BASELINES, PROBES, compared, points_over
from selfdistill.reports.chart import Chart, svg
from selfdistill.reports.html import key, levels_key, runs_table, sentence
from selfdistill.run_folder.files import section
from selfdistill.run_folder.record import Record
from selfdistill.run_folder.scores import levels, levels_of_several

_SOURCES = {"raw": "raw input", "untrained": "untrained encoder", "trained": "trained encoder"}
_NORMAL = 1.96
"""Standard errors to either side of a 95 % interval."""


def of_one(record: Record, ids: "count[int]") -> str:
    """The probes of a run against its baselines; empty where it was not evaluated."""
    blocks = []
    for modality in record.parts():
        curves = record.scores(modality)
        for task, table in _tables(record, modality).items():
            cards = "".join(
                _card(record, modality, task, probe, ids) for probe in _probes(table, curves, task)
            )
            blocks.append(
                f"<h4>{escape(f'{modality}, {task}')}{escape(_sizes(table))}</h4>\n"
                f'<div class="grid">\n{cards}</div>\n'
            )
    return "".join(blocks)


def _tables(record: Record, modality: str) -> dict[str, Mapping[str, Any]]:
    """Of the last evaluation; empty ones for tasks of which there are only accuracies."""
    logged: dict[str, Mapping[str, Any]] = {task: {} for task, _ in record.scores(modality)}
    return {**logged, **record.tasks(modality)}


def _probes(table: Mapping[str, Any], curves: Iterable[tuple[str, str]], task: str) -> list[str]:
    """Those of a task, the known ones first."""
    found = {probe for probe in table if "trained" in section(table, probe)}
    found |= {probe for name, probe in curves if name == task}
    return [probe for probe in PROBES if probe in found] + sorted(found - PROBES.keys())


def _sizes(table: Mapping[str, Any]) -> str:
    classes = table.get("classes")
    if type(classes) is not int or classes < 1:
        return ""
    return f": {classes:,} classes, chance {100 / classes:.1f} %"


def _card(record: Record, modality: str, task: str, probe: str, ids: "count[int]") -> str:
    whole = record.tasks(modality).get(task, {})
    table = section(whole, probe)
    points = record.scores(modality).get((task, probe), {})
    text = f"<header><h3>{escape(PROBES.get(probe, probe))} probe</h3></header>\n"
    if table:
        found = section(record.result, modality).get("raw_input")
        text += _bars(table, whole.get("classes"), str(found or ""))
        text += f'<p class="small">{sentence(_difference(table))}</p>\n'
    if len(points) > 1:
        steps = sorted(points)
        curve = Curve("trained encoder", steps, [points[step] for step in steps])
        baselines = levels(record, modality, task, probe)
        chart = Chart(
            f"{PROBES.get(probe, probe)} probe over steps", [curve], levels=baselines, share=True
        )
        text += svg(chart, {"trained encoder": 0}, f"s{next(ids)}-") + levels_key(baselines)
    return f'<article class="card figure">\n{text}</article>\n'


def _bars(table: Mapping[str, Any], classes: Any, raw_input: str) -> str:
    values = {source: _number(table.get(source)) for source in _SOURCES}
    known = {source: value for source, value in values.items() if isfinite(value)}
    ends = {source: _interval(table, source) for source in known}
    most = max([*known.values(), *(end[1] for end in ends.values() if end), 0.1]) * 1.05
    most = min(most, 1.0)
    rows = []
    for source, value in known.items():
        name = _SOURCES[source] + (f" ({raw_input})" if source == "raw" and raw_input else "")
        if source == "trained" and table.get("layer") is not None:
            name += f", layer {table['layer']}"
        rows.append(
            f"<div{' class=own' if source == 'trained' else ''}><span>{escape(name)}"
            f"<span>{escape(_written(table, source))}</span></span>"
            f'<span class="track"><i style="width: {_of(value, most)}"></i>'
            f"{_whisker(ends[source], most)}{_chance(classes, most)}</span></div>\n"
        )
    return f'<div class="bars">\n{"".join(rows)}</div>\n'


def _of(value: float, most: float) -> str:
    return f"{100 * min(max(value / most, 0.0), 1.0):.1f}%"


def _whisker(ends: tuple[float, float] | None, most: float) -> str:
    if ends is None:
        return ""
    low, high = max(ends[0], 0.0), min(ends[1], most)
    return f'<u style="left: {_of(low, most)}; width: {_of(high - low, most)}"></u>'


def _chance(classes: Any, most: float) -> str:
    if type(classes) is not int or classes < 1 or 1 / classes > most:
        return ""
    return f'<s style="left: {_of(1 / classes, most)}"></s>'


def _number(value: Any) -> float:
    """NaN for what is none."""
    return float(value) if type(value) in (int, float) else nan


def _error(table: Mapping[str, Any], source: str) -> float:
    """Standard error of an accuracy; of few-shot ones the deviation over the draws."""
    found = _number((section(table, "std") or section(table, "standard_error")).get(source))
    return found if isfinite(found) else 0.0


def _interval(table: Mapping[str, Any], source: str) -> tuple[float, float] | None:
    """Of 95 %: the evaluation's own, or in older versions' that of a normal distribution."""
    found = section(table, "interval").get(source)
    if isinstance(found, list) and len(found) == 2 and all(isfinite(_number(x)) for x in found):
        return found[0], found[1]
    value = _number(table.get(source))
    half = _NORMAL * _number(section(table, "standard_error").get(source))
    return (value - half, value + half) if half > 0 and isfinite(value) else None


def _written(table: Mapping[str, Any], source: str) -> str:
    """An accuracy with its interval, in percent."""
    value, ends = _number(table.get(source)), _interval(table, source)
    if ends is None:
        return f"{100 * value:.1f} %"
    return f"{100 * value:.1f} % ({100 * max(ends[0], 0):.1f} to {100 * min(ends[1], 1):.1f})"


def _difference(table: Mapping[str, Any]) -> str:
    trained, untrained = _number(table.get("trained")), _number(table.get("untrained"))
    if not isfinite(trained - untrained):
        return "there is no untrained encoder to compare with"
    error = hypot(_error(table, "trained"), _error(table, "untrained"))
    return compared(trained, untrained, error, BASELINES["untrained"])


def headline(record: Record) -> list[tuple[str, str]]:
    """The linear probe of each modality's first task, as a tile."""
    found = []
    for modality in record.parts():
        for task, table in list(record.tasks(modality).items())[:1]:
            linear = section(table, "linear")
            trained, untrained = _number(linear.get("trained")), _number(linear.get("untrained"))
            if not isfinite(trained):
                continue
            name = f"linear probe of {task}"
            if isfinite(untrained):
                over = points_over(trained, untrained)
                name += f" ({over:+.1f} points on the untrained encoder)"
            found.append((name, f"{100 * trained:.1f} %"))
    return found


def of_several(records: Mapping[str, Record], numbers: Mapping[str, int], ids: "count[int]") -> str:
    """The last evaluations of runs as a table, and all of them as curves."""
    places = dict.fromkeys(
        (modality, task, probe)
        for record in records.values()
        for modality in record.parts()
        for task, table in _tables(record, modality).items()
        for probe in _probes(table, record.scores(modality), task)
    )
    if not places:
        return ""
    rows: dict[str, list[str]] = {}
    best: dict[str, set[int]] = {}
    for modality, task, probe in places:
        values = [_final(record, modality, task, probe) for record in records.values()]
        row = f"{modality}, {task}: {PROBES.get(probe, probe)}"
        rows[row] = [text for _, text in values]
        shown = [round(value, 3) for value, _ in values if isfinite(value)]
        if len(set(shown)) > 1:
            best[row] = {i for i, (value, _) in enumerate(values) if round(value, 3) == max(shown)}
    table = f'<div class="card">\n{runs_table(list(records), rows, best)}</div>\n'
    cards = "".join(
        _overlay(place, records, numbers, ids)
        for place in places
        if any(len(r.scores(place[0]).get((place[1], place[2]), ())) > 1 for r in records.values())
    )
    curves = f'<h4>over the steps</h4>\n<div class="grid">\n{cards}</div>\n' if cards else ""
    return table + curves


def _final(record: Record, modality: str, task: str, probe: str) -> tuple[float, str]:
    """The last accuracy with its interval and what it is over the untrained encoder."""
    table = section(record.tasks(modality).get(task, {}), probe)
    value, untrained = _number(table.get("trained")), _number(table.get("untrained"))
    if not isfinite(value):
        points = record.scores(modality).get((task, probe), {})
        if not points:
            return nan, "none"
        return points[max(points)], f"{100 * points[max(points)]:.1f} %"
    text = _written(table, "trained")
    if isfinite(untrained):
        text += f", {points_over(value, untrained):+.1f}"
    return value, text


def _overlay(
    place: tuple[str, str, str],
    records: Mapping[str, Record],
    numbers: Mapping[str, int],
    ids: "count[int]",
) -> str:
    modality, task, probe = place
    curves = []
    found = []
    for name, record in records.items():
        points = record.scores(modality).get((task, probe), {})
        steps: Sequence[int] = sorted(points)
        if steps:
            curves.append(Curve(name, steps, [points[step] for step in steps]))
            found.append(levels(record, modality, task, probe))
    baselines = levels_of_several(found)
    title = f"{modality}, {task}: {PROBES.get(probe, probe)} probe"
    drawn = svg(Chart(title, curves, levels=baselines, share=True), numbers, f"s{next(ids)}-")
    return (
        f'<article class="card figure">\n<header><h3>{escape(title)}</h3></header>\n{drawn}\n'
        f"{key([curve.name for curve in curves], numbers)}{levels_key(baselines)}</article>\n"
    )
