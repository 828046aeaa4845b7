"""Runs side by side: how accurate they became, how long it took, and a picture of both."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from statistics import mean
from typing import Any

from selfdistill.durable import write_atomically
from selfdistill.errors import UserError
from selfdistill.folders import as_text
from selfdistill.outputs import check_output
from selfdistill.plots import Curve, Panel, draw
from selfdistill.probes.table import PROBES, aligned
from selfdistill.run_folder.record import check_named_once
from selfdistill.run_folder.scores import Place, Run, differing, levels_of_several, read_run

logger = logging.getLogger(__name__)

SUFFIXES = (".svg", ".png")
_MAX_NAME = 40


@dataclass(frozen=True)
class Reached:
    """When a curve first had an accuracy.

    Attributes:
        minutes: by linear interpolation between evaluations.
        is_bound: the first evaluation had it already, so that it took ``minutes`` at most.
    """

    minutes: float
    is_bound: bool


def compare(
    paths: Sequence[Path], out: Path, task: str | None = None, probe: str = "linear"
) -> str:
    """Draw the accuracy of runs over their training time.

    Runs that differ in their seed only are drawn as their mean, by step, with a band from the
    worst to the best. There is a panel for each modality, with the mean of its runs' baselines.

    Args:
        paths: folders of runs; what the others are measured by comes first.
        out: the picture, ``.svg`` or ``.png``; it is replaced.
        task: None: of each modality the first.
        probe: one of ``probes.table.PROBES``.

    Returns:
        A table for each panel, in ASCII.

    Raises:
        UserError: a folder is no run, is named twice, or lacks what is to be compared.
    """
    check_output(out, "--out", SUFFIXES)
    check_named_once(paths)
    runs = [read_run(path, probe) for path in paths]
    panels = [
        _panel(place, [run for run in runs if place in run.scores]) for place in _places(runs, task)
    ]
    write_atomically(out, draw(panels, PROBES[probe], out.suffix.lower()[1:]))
    return "\n\n".join(_table(panel, PROBES[probe]) for panel in panels)


def _places(runs: Sequence[Run], task: str | None) -> list[Place]:
    """One task for each modality; refuses runs that lack it."""
    chosen: dict[str, str] = {}
    for run in runs:
        for modality, name in run.scores:
            if task in (None, name):
                chosen.setdefault(modality, name)
    for run in runs:
        wanted = {(modality, chosen.get(modality)) for modality, _ in run.scores}
        lacking = wanted - run.scores.keys()
        if lacking and (task is None or lacking == wanted):
            known = ", ".join(dict.fromkeys(name for _, name in run.scores))
            missing = task or sorted(str(name) for _, name in lacking)[0]
            raise UserError(f"--task: {run.path} has no task '{missing}'; it has {known}")
    return list(chosen.items())


def _panel(place: Place, runs: Sequence[Run]) -> Panel:
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(json.dumps(run.config, sort_keys=True, default=str), []).append(run)
    names = _names(list(groups.values()))
    curves = [
        _curve(name, place, group) for name, group in zip(names, groups.values(), strict=True)
    ]
    levels = levels_of_several(run.levels.get(place, {}) for run in runs)
    return Panel(", ".join(place), curves, levels)


def _curve(name: str, place: Place, runs: Sequence[Run]) -> Curve:
    steps = sorted(set.intersection(*(set(run.scores[place]) for run in runs)))
    if not steps:
        listed = ", ".join(str(run.path) for run in runs)
        raise UserError(
            f"{listed}: differ in their seed only, but no step was evaluated in all; "
            "give them the same eval.every"
        )
    last = max(max(run.scores[place]) for run in runs)
    if last > steps[-1]:
        logger.warning("%s: not all runs have come to step %d; drawn to %d", name, last, steps[-1])
    found = [[run.scores[place][step] for run in runs] for step in steps]
    accuracies = [[accuracy for _, accuracy in row] for row in found]
    return Curve(
        name,
        at=[mean(seconds for seconds, _ in row) / 60 for row in found],
        values=[mean(row) for row in accuracies],
        low=[min(row) for row in accuracies],
        high=[max(row) for row in accuracies],
    )


def _names(groups: Sequence[Sequence[Run]]) -> list[str]:
    """By folder; where there are repeats, by what differs between the groups, if that is short."""
    names = [_folder(group) for group in groups]
    if len(set(names)) < len(names):
        names = [as_text(group[0].path) for group in groups]
    if len(groups) > 1 and any(len(group) > 1 for group in groups):
        differences = _differences([group[0].config for group in groups])
        if max(map(len, differences)) <= _MAX_NAME:
            names = differences
    return [
        f"{name} ({len(group)} runs)" if len(group) > 1 else name
        for name, group in zip(names, groups, strict=True)
    ]


def _folder(group: Sequence[Run]) -> str:
    """What the folders' names begin with."""
    names = [as_text(run.path.resolve().name) for run in group]
    columns = takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    shared = "".join(letters[0] for letters in columns)
    return shared if len(group) == 1 else shared.rstrip("-_.") or names[0]


def _differences(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """For each config ``key=value, ...`` of the keys that are not the same in all of them."""
    values = differing(configs)
    lasts = [key.rpartition(".")[2] for key in values]
    short = {
        key: last if lasts.count(last) == 1 else key
        for key, last in zip(values, lasts, strict=True)
    }
    return [
        ", ".join(f"{short[key]}={words[number]}" for key, words in values.items())
        for number in range(len(configs))
    ]


def reached(curve: Curve, accuracy: float) -> Reached | None:
    """When a curve first had an accuracy; None: never."""
    for i, (minutes, found) in enumerate(zip(curve.at, curve.values, strict=True)):
        if found < accuracy:
            continue
        if i == 0:
            return Reached(minutes, found > accuracy or len(curve.at) > 1)
        before, below = curve.at[i - 1], curve.values[i - 1]
        share = (accuracy - below) / (found - below)
        return Reached(before + share * (minutes - before), False)
    return None


def _table(panel: Panel, probe: str) -> str:
    first = panel.curves[0]
    target = first.values[-1]
    rows = [("", "accuracy", "minutes", f"{100 * target:.1f} % after", "speed-up")]
    for curve in panel.curves:
        end = f"{100 * curve.values[-1]:.1f}"
        if curve.has_band:
            end += f" ({100 * curve.low[-1]:.1f} to {100 * curve.high[-1]:.1f})"
        rows.append((curve.name, end, _minutes(curve.at[-1]), *_times(curve, first, target)))
    return "\n".join([f"{panel.title}: {probe} probe, accuracy in percent", *aligned(rows)])


def _times(curve: Curve, first: Curve, target: float) -> tuple[str, str]:
    """When a curve has the final accuracy of the first one, and how much sooner."""
    own, theirs = reached(curve, target), reached(first, target)
    if own is None or theirs is None:
        return "never", "-"
    mark = "<= " if own.is_bound else ""
    # of two bounds nothing follows
    known = not theirs.is_bound and own.minutes > 0
    ratio = f"{theirs.minutes / own.minutes:.2f}x" if known else "-"
    return f"{mark}{_minutes(own.minutes)} min", f">= {ratio}" if known and mark else ratio


def _minutes(minutes: float) -> str:
    return f"{minutes:.1f}" if minutes >= 10 else f"{minutes:.2f}"
