"""One page about a run, or about several beside each other, from their folders alone."""

from collections.abc import Mapping, Sequence
from html import escape
from itertools import count
from math import isfinite
from pathlib import Path

from selfdistill.amounts import duration
from selfdistill.durable import write_atomically
from selfdistill.folders import as_text
from selfdistill.health.verdict import Verdict
from selfdistill.outputs import check_output
from selfdistill.redaction import redacted
from selfdistill.reports import facts, scores
from selfdistill.reports.assess import Group, assess, groups
from selfdistill.reports.figures import health
from selfdistill.reports.html import (
    chip,
    page,
    pairs,
    runs_table,
    sentence,
    tiles,
    tone,
    verdict_card,
)
from selfdistill.reports.pictures import pictures
from selfdistill.run_folder.record import Record, check_named_once, read_record
from selfdistill.run_folder.scores import differing, settings

_HEALTHY = "every figure that has a healthy band is inside it"
_PROBES = (
    "Accuracy of probes on frozen features, with 95 % intervals over the test samples (few-shot: "
    "of the mean over the draws); the dashed mark is chance. What counts is how far the trained "
    "encoder is above the untrained one. Curves are in percent over the steps."
)
_CURVES = (
    "Over the steps. The shaded part is healthy, red points are outside it. A loss that rises is "
    "nothing bad by itself."
)
_OVERLAYS = (
    "Over the steps. Dotted lines are the limits of the run of that colour, red points are outside."
)


def report(paths: Sequence[Path], out: Path) -> dict[str, Verdict]:
    """Write one HTML page that needs nothing else.

    Args:
        paths: folders of runs; several are compared.
        out: the page, ``.html``; it is replaced.

    Returns:
        The verdict on each run, by its name on the page.

    Raises:
        UserError: a folder is no run, is named twice, or a file in it is damaged.
    """
    check_output(out, "--out", (".html",))
    check_named_once(paths)
    records = _named([read_record(path) for path in paths])
    found = {name: groups(record) for name, record in records.items()}
    verdicts = {name: assess(record, found[name]) for name, record in records.items()}
    if len(records) == 1:
        content = _one(*next(iter(records.items())), found, verdicts)
    else:
        content = _several(records, found, verdicts)
    write_atomically(out, content)
    return verdicts


def _named(records: Sequence[Record]) -> dict[str, Record]:
    """By folder, where that tells them apart."""
    for names in (
        [record.name for record in records],
        [as_text(record.path) for record in records],
    ):
        if len(set(names)) == len(names):
            return dict(zip(names, records, strict=True))
    return {as_text(record.path.resolve()): record for record in records}


def _one(
    name: str,
    record: Record,
    found: Mapping[str, Sequence[Group]],
    verdicts: Mapping[str, Verdict],
) -> bytes:
    ids = count()
    speed = facts.speed(record)
    tile = [
        *scores.headline(record),
        (
            f"of {record.steps:,} steps" if record.steps else "steps",
            f"{record.step:,}",
        ),
        ("of training", duration(record.seconds)),
        ("samples a second", f"{speed:,.4g}" if isfinite(speed) else "unknown"),
    ]
    body = (
        f"<header>\n<h1>{escape(name)}</h1>\n"
        f'<p class="sub">{escape(facts.kind(record))}; {escape(as_text(record.path))}</p>\n'
        "</header>\n"
        f"{verdict_card(verdicts[name], _healthy(record))}{tiles(tile)}"
    )
    probes = scores.of_one(record, ids)
    none = "This run was not evaluated; name labelled sets in eval.tasks."
    body += _section("What it has learned", probes, _PROBES if probes else none)
    body += _section("Is it healthy", health(found, {name: 0}, ids), _CURVES)
    body += _section("Pictures", pictures(record.path), "", optional=True)
    hardware = facts.hardware(record)
    body += _section("Hardware and speed", f'<div class="card">\n{pairs(hardware)}</div>\n', "")
    everything = facts.all_settings(record)
    body += _section(
        "Settings",
        f'<div class="card">\n{pairs(facts.important(record))}<details>\n'
        f"<summary>All {len(everything)} settings</summary>\n{pairs(everything)}</details>\n"
        "</div>\n",
        "",
    )
    return page(f"{name}: {verdicts[name].words}", body)


def _healthy(record: Record) -> str:
    """What to say of a run with which nothing is wrong."""
    said = [f"the {what} is {value}" for what, value in scores.headline(record)]
    return f"{_HEALTHY}; " + ("; ".join(said) or "what it has learned was not evaluated")


def _section(title: str, content: str, words: str, optional: bool = False) -> str:
    if optional and not content:
        return ""
    said = f'<p class="sub">{escape(words)}</p>\n' if words else ""
    return f"<section>\n<h2>{escape(title)}</h2>\n{said}{content}</section>\n"


def _several(
    records: Mapping[str, Record],
    found: Mapping[str, Sequence[Group]],
    verdicts: Mapping[str, Verdict],
) -> bytes:
    ids = count()
    names = list(records)
    numbers = {name: number for number, name in enumerate(names)}
    legend = "".join(
        _legend(name, record, numbers[name], verdicts[name]) for name, record in records.items()
    )
    title = f"{len(names)} runs compared"
    body = f'<h1>{title}</h1>\n<ul class="legend">\n{legend}</ul>\n'
    probes = scores.of_several(records, numbers, ids)
    none = "None of these runs was evaluated; name labelled sets in eval.tasks."
    body += _section(
        "What they have learned",
        probes,
        f"{_PROBES.partition(';')[0]}; last the points on the untrained encoder."
        if probes
        else none,
    )
    body += _section("Settings that differ", _differences(records), "")
    body += _section("Are they healthy", health(found, numbers, ids), _OVERLAYS)
    for name, record in records.items():
        body += _section(f"Pictures of {name}", pictures(record.path), "", optional=True)
    body += _section("Hardware and speed", _hardware(records), "")
    return page(title, body)


def _legend(name: str, record: Record, number: int, verdict: Verdict) -> str:
    reasons = "; ".join(finding.text for finding in verdict.findings) or _HEALTHY
    return (
        f'<li class="card" style="{tone(number)}"><b>{escape(name)}</b>\n'
        f'<p class="small faint">{escape(facts.kind(record))}; {escape(facts.progress(record))}; '
        f"{escape(as_text(record.path))}</p>\n<p>{chip(verdict)}</p>\n"
        f'<p class="small">{sentence(reasons)}</p></li>\n'
    )


def _differences(records: Mapping[str, Record]) -> str:
    rows = differing(
        [settings(record, ignored=("run_dir", "resume")) for record in records.values()]
    )
    rows = {key: [redacted(value) for value in values] for key, values in rows.items()}
    if not rows:
        return "<p>All settings are the same.</p>\n"
    return f'<div class="card">\n{runs_table(list(records), rows, {})}</div>\n'


def _hardware(records: Mapping[str, Record]) -> str:
    found = [dict(facts.hardware(record)) for record in records.values()]
    keys = dict.fromkeys(key for rows in found for key in rows)
    rows = {key: [row.get(key, "unknown") for row in found] for key in keys}
    return f'<div class="card">\n{runs_table(list(records), rows, {})}</div>\n'
