"""What the live view of a run shows, as lines of text."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite, nan

from selfdistill.amounts import duration
from selfdistill.folders import as_text
from selfdistill.health.bands import Band
from selfdistill.health.figures import Figure, family_of, figure_of
from selfdistill.health.verdict import Verdict
from selfdistill.probes.table import PROBES
from selfdistill.reports import facts
from selfdistill.reports.assess import Group
from selfdistill.reports.life import State
from selfdistill.run_folder.files import SavedStep, section
from selfdistill.run_folder.record import Record

_BLOCKS = "".join(map(chr, range(0x2581, 0x2589)))
_ASCII = "_.,-=+*#"
_NARROWEST = 10
"""Letters that lines are broken at where a terminal has fewer still, and cut."""
_SHORTEST_TITLE = 16
"""Letters that stay of a figure's title in a narrow terminal."""
_LONGEST = 48
"""Letters of a sparkline."""
_LEAST_SPAN = 0.04
"""Share of the largest value that a sparkline spans at least: what hardly changes looks like it."""


@dataclass(frozen=True)
class Line:
    """A line of the view; ``tone`` is "bold", "faint", a status of ``health`` or empty."""

    text: str
    tone: str = ""


@dataclass(frozen=True)
class View:
    """What is to be shown.

    Attributes:
        record: what the run has logged.
        groups: its figures.
        verdict: on it.
        state: whether it goes on, and in words.
        age: seconds since the last line; NaN: there is none.
        saved: its checkpoints, by step.
        now: seconds since the epoch.
        troubles: what could not be read.
    """

    record: Record
    groups: Sequence[Group]
    verdict: Verdict
    state: tuple[State, str]
    age: float
    saved: Sequence[SavedStep]
    now: float
    troubles: Sequence[str] = field(default_factory=list)


def frame(view: View, width: int, unicode: bool) -> list[Line]:
    """The lines, none of them longer than ``width``; all but sparklines is ASCII where names are.

    Args:
        view: what to show.
        width: of the terminal, in letters.
        unicode: whether it can show blocks.
    """
    room = max(width, _NARROWEST)
    blocks = _BLOCKS if unicode else _ASCII
    record = view.record
    lines = [
        Line(f"{as_text(record.path)}  {facts.kind(record)}", "bold"),
        Line(view.state[1], "look" if view.state[0] in ("silent", "unknown", "stopped") else ""),
        *_progress(view, room),
        Line(""),
        *_verdict(view.verdict, room),
    ]
    lines += [Line(f"! {trouble}", "look") for trouble in view.troubles]
    for group in view.groups:
        if group.log.values:
            lines += [Line(""), *_figures(group, room, blocks, len(view.groups) > 1)]
    lines += _evaluations(record, room, blocks)
    lines += [Line(""), *_files(view)]
    return [Line(clean(line.text)[:width].rstrip(), line.tone) for line in lines]


def clean(text: str) -> str:
    """Without letters that a terminal obeys: names of a run may hold any."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _progress(view: View, width: int) -> list[Line]:
    record = view.record
    if not record.steps:
        return [Line(f"step {record.step:,}")]
    share = min(record.step / record.steps, 1.0)
    room = max(min(width - 60, 30), 10)
    done = round(share * room)
    bar = f"[{'#' * done}{'-' * (room - done)}]"
    words = [f"step {record.step:,}/{record.steps:,}", bar, f"{100 * share:.0f} %"]
    rate = steps_per_second(record)
    if isfinite(rate):
        words.append(f"{rate:.3g} steps/s")
        if share < 1:
            words.append(f"{duration((record.steps - record.step) / rate)} left")
    if len("  ".join(words)) > width:
        words.remove(bar)
    return [Line("  ".join(words))]


def steps_per_second(record: Record) -> float:
    """Of training, over the last lines; NaN where there are too few."""
    known = [row for row in record.rows if isfinite(row.get("train_seconds", nan))][-11:]
    if not known:
        return nan
    begin = known[0] if len(known) > 1 else {"step": 0, "train_seconds": 0.0}
    steps = known[-1]["step"] - begin["step"]
    seconds = known[-1]["train_seconds"] - begin["train_seconds"]
    return steps / seconds if steps > 0 and seconds > 0 else nan


def _verdict(verdict: Verdict, width: int) -> list[Line]:
    lines = [Line(verdict.words.upper(), verdict.status)]
    for finding in verdict.findings:
        advice = f" {finding.advice}" if finding.advice else ""
        text = f"{finding.text[:1].upper()}{finding.text[1:]}.{advice}"
        lines += [Line(f"  {line}") for line in textwrap.wrap(text, width - 2)]
    return lines


def _figures(group: Group, width: int, blocks: str, several: bool) -> list[Line]:
    # of many layers the last one, of parts their sum
    last = {family_of(keys[-1])[0]: keys[-1] for keys in reversed(group.families())}
    names = [name for name in group.names() if name in last.values()]
    titles = {name: _title(name) for name in names}
    bands = {name: _band(figure_of(name), group.bands.get(name)) for name in names}
    values = {name: figure_of(name).written(group.log.last(name)) for name in names}
    right = max(map(len, values.values()))
    # the value says more than the end of a title
    wide = min(max(map(len, titles.values())), max(width - right - 4, _SHORTEST_TITLE))
    middle = max(map(len, bands.values()))
    if 2 + wide + right + middle + 14 > width:
        middle = 0  # the sparkline says more
    room = max(min(width - wide - right - middle - 8, _LONGEST), 0)
    lines = [Line(group.name or "the whole run", "bold")] if several else []
    for name in names:
        finding = group.finding(name)
        band = f"{bands[name]:{middle}}  " if middle else ""
        spark = sparkline(group.log.values[name], room, blocks)
        mark = "!" if finding else " "
        text = f"{mark} {titles[name][:wide]:{wide}}  {values[name]:>{right}}  {band}{spark}"
        lines.append(Line(text, finding.status if finding else ""))
    return lines


def _title(name: str) -> str:
    title, member = figure_of(name).title, family_of(name)[1]
    return f"{title} {member}" if member else title


def _band(figure: Figure, band: Band | None) -> str:
    """The limits of the last line."""
    if band is None or not band.low:
        return ""
    low, high = band.low[-1], band.high[-1]
    if low != low:
        return "not yet judged"
    if isfinite(low) and isfinite(high):
        return f"{figure.written(low)} to {figure.written(high)}"
    if isfinite(low):
        return f">= {figure.written(low)}"
    return f"<= {figure.written(high)}" if isfinite(high) else ""


def sparkline(values: Sequence[float], width: int, blocks: str) -> str:
    """The course of values in so many letters; gaps are blanks.

    Args:
        values: in the order of time; NaN: a gap.
        width: the most letters.
        blocks: from the lowest to the highest.
    """
    count = min(len(values), width)
    means = []
    for column in range(count):
        first, last = column * len(values) // count, (column + 1) * len(values) // count
        known = [value for value in values[first:last] if isfinite(value)]
        means.append(sum(known) / len(known) if known else nan)
    known = [mean for mean in means if isfinite(mean)]
    low, high = min(known, default=0.0), max(known, default=0.0)
    span = max(high - low, _LEAST_SPAN * max(-low, high)) or 1.0
    top = len(blocks) - 1
    return "".join(
        blocks[round((mean - low) / span * top)] if isfinite(mean) else " " for mean in means
    )


def _evaluations(record: Record, width: int, blocks: str) -> list[Line]:
    lines = []
    for modality in record.parts():
        scores = record.scores(modality)
        steps = [step for points in scores.values() for step in points]
        if not steps:
            continue
        last = max(steps)
        lines += [Line(""), Line(f"{modality}, evaluated after step {last:,}", "bold")]
        for task in dict.fromkeys(task for task, _ in scores):
            probes = [
                f"{PROBES.get(probe, probe)} {100 * points[max(points)]:.1f} %"
                + _untrained(record, modality, task, probe)
                for (its_task, probe), points in scores.items()
                if its_task == task
            ]
            linear = scores.get((task, "linear"), {})
            course = sparkline([linear[step] for step in sorted(linear)], 16, blocks)
            spark = f"  {course}" if len(linear) > 1 else ""
            text = f"{task}: {', '.join(probes)}{spark}"
            wrapped = textwrap.wrap(text, width - 2, subsequent_indent="  ")
            lines += [Line(f"  {line}") for line in wrapped]
    return lines


def _untrained(record: Record, modality: str, task: str, probe: str) -> str:
    table = section(record.tasks(modality).get(task, {}), probe)
    value = table.get("untrained")
    return f" (untrained {100 * value:.1f})" if isinstance(value, int | float) else ""


def _files(view: View) -> list[Line]:
    if view.saved:
        newest = view.saved[-1]
        age = duration(max(view.now - newest.changed, 0))
        lines = [Line(f"newest checkpoint  {newest.name}, {age} ago")]
    else:
        lines = [Line("newest checkpoint  none yet")]
    age = f"{duration(view.age)} ago" if isfinite(view.age) else "none yet"
    return [*lines, Line(f"last line          {age}")]
