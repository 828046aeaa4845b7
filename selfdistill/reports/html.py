"""The pieces that pages of reports are made of; all text is escaped here."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape

import selfdistill
from selfdistill.health.verdict import Finding, Verdict
from selfdistill.plots import COLOURS, dashes
from selfdistill.reports.style import STYLE

_SAFE = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_LONGEST_WORD = 20
"""Letters of a word that a table keeps in one piece; floats have up to so many."""
_DASHES = {"-": "", "--": "dash", ":": "dot", "-.": "dash"}


def document(title: str, style: str, body: str) -> bytes:
    """A page that needs nothing but itself, and could not load anything else.

    Bytes of names that are no text are spelt out.

    Args:
        title: plain text.
        style: CSS.
        body: HTML.
    """
    text = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_SAFE}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n{body}"
        "</body>\n</html>\n"
    )
    return text.encode("utf-8", "backslashreplace")


def page(title: str, body: str) -> bytes:
    """The ``document`` of a report."""
    version = escape(selfdistill.__version__)
    footer = f"Made by selfdistill {version} from the files in the run's folder."
    return document(title, STYLE, f"{body}<footer>{footer}</footer>\n")


def sentence(text: str) -> str:
    """As HTML, with a capital letter and a full stop."""
    text = text[:1].upper() + text[1:]
    return escape(text if text.endswith((".", ":")) else f"{text}.")


def verdict_card(found: Verdict, healthy: str) -> str:
    """The verdict with its reasons.

    Args:
        found: the verdict.
        healthy: what to say where there is nothing to find fault with.
    """
    reasons = "".join(map(_reason, found.findings)) or f"<li>{sentence(healthy)}</li>\n"
    return (
        f'<section class="card verdict {found.status}">\n<h2>{escape(found.words)}</h2>\n'
        f"<ul>\n{reasons}</ul>\n</section>\n"
    )


def _reason(finding: Finding) -> str:
    faint = f' <span class="faint">{advice(finding.advice)}</span>' if finding.advice else ""
    return f"<li>{sentence(finding.text)}{faint}</li>\n"


def advice(text: str) -> str:
    """Plain text as HTML, with what stands between backquotes as code."""
    pieces = escape(text).split("`")
    return "".join(f"<code>{p}</code>" if i % 2 else p for i, p in enumerate(pieces))


def chip(found: Verdict) -> str:
    return f'<span class="chip {found.status}">{escape(found.words)}</span>'


def tiles(content: Iterable[tuple[str, str]]) -> str:
    """Figures (what it is, its value) side by side."""
    return (
        '<div class="tiles">\n'
        + "".join(
            f'<div class="card tile"><b>{escape(value)}</b>{escape(name)}</div>\n'
            for name, value in content
        )
        + "</div>\n"
    )


def pairs(rows: Iterable[tuple[str, str]]) -> str:
    """A table of names and values."""
    lines = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>\n" for name, value in rows
    )
    return f'<table class="pairs">\n{lines}</table>\n'


def runs_table(
    names: Sequence[str], rows: Mapping[str, Sequence[str]], best: Mapping[str, set[int]]
) -> str:
    """A table with a column for each run, which a narrow window shows as a list.

    Args:
        names: of the runs.
        rows: by what they hold.
        best: of some rows the columns that stand out.
    """
    head = "".join(f"<th>{_breakable(name)}</th>" for name in names)
    lines = []
    for row, values in rows.items():
        cells = "".join(
            f'<td data-run="{escape(name)}"{_best(number in best.get(row, ()))}>'
            f"<span>{_breakable(value)}</span></td>"
            for number, (name, value) in enumerate(zip(names, values, strict=True))
        )
        lines.append(f"<tr><th>{_breakable(row)}</th>{cells}</tr>\n")
    return (
        f'<table class="runs">\n<thead><tr><th></th>{head}</tr></thead>\n'
        f"<tbody>\n{''.join(lines)}</tbody>\n</table>\n"
    )


def _breakable(text: str) -> str:
    """As HTML whose long words may break: if all might, a column could shrink to a letter."""
    return " ".join(
        f'<span class="long">{escape(word)}</span>' if len(word) > _LONGEST_WORD else escape(word)
        for word in text.split(" ")
    )


def _best(is_best: bool) -> str:
    return ' class="best"' if is_best else ""


def key(names: Iterable[str], numbers: Mapping[str, int]) -> str:
    """What the curves of a chart are."""
    items = "".join(
        f'<span style="{tone(numbers[name])}"><i class="{_DASHES[dashes(numbers[name])]}"></i>'
        f"{escape(name)}</span>"
        for name in names
    )
    return f'<div class="key">{items}</div>\n'


def levels_key(names: Iterable[str]) -> str:
    """What the dashed lines of a chart are."""
    items = "".join(
        f'<span><i class="{style}"></i>{escape(name)}</span>'
        for name, style in zip(names, ("dash", "dot"), strict=False)
    )
    return f'<div class="key">{items}</div>\n'


def tone(number: int) -> str:
    """The colour of a curve, for a style."""
    return f"--tone: var(--c{number % len(COLOURS)})"
