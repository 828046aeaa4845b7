"""What was found in a data set, as words for a terminal and as one HTML page."""

from base64 import b64encode
from collections.abc import Sequence
from html import escape
from itertools import pairwise

from selfdistill.inspection.facts import Findings, Histogram
from selfdistill.inspection.sheet import Part, heading, picture
from selfdistill.modalities.picture import MASKED
from selfdistill.reports.html import document

BAR = 40
"""Letters of the longest bar."""
STYLE = f"""
:root {{ color-scheme: light dark; --back: #fff; --ink: #1c1d1f; --faint: #6b6e73;
  --line: #d9dbde; --card: #f6f7f8; --bar: #3d85c6; --mask: {MASKED}; --piece: #9e9e9e38; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --back: #16181b; --ink: #e6e7e9; --faint: #9a9ea5; --line: #34373c; --card: #1e2125; }}
}}
* {{ box-sizing: border-box; }}
body {{ margin: 0 auto; padding: 1rem; max-width: 100rem; background: var(--back);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }}
h1 {{ font-size: 1.3rem; overflow-wrap: anywhere; }}
h2 {{ font-size: 1.1rem; margin: 2rem 0 0.5rem; }}
table {{ border-collapse: collapse; }}
th, td {{ text-align: left; vertical-align: top; padding: 0.2rem 1rem 0.2rem 0;
  border-bottom: 1px solid var(--line); overflow-wrap: anywhere; }}
th {{ font-weight: 500; color: var(--faint); white-space: nowrap; }}
.bars {{ display: grid; grid-template-columns: max-content minmax(4rem, 24rem) max-content;
  gap: 0.15rem 0.7rem; align-items: center; font-size: 0.85rem; margin-top: 0.8rem;
  font-variant-numeric: tabular-nums; }}
.bars h3 {{ grid-column: 1 / -1; font-size: 0.85rem; font-weight: 500; color: var(--faint);
  margin: 0; }}
.bars i {{ display: block; height: 0.7rem; background: var(--bar); border-radius: 2px; }}
.samples {{ display: grid; gap: 1rem; margin-top: 0.8rem; align-items: start; }}
figure {{ margin: 0; padding: 0.6rem; background: var(--card); border-radius: 6px; min-width: 0; }}
figcaption {{ font-size: 0.8rem; color: var(--faint); margin-bottom: 0.4rem;
  overflow-wrap: anywhere; }}
img {{ display: block; width: 100%; height: auto; }}
.text {{ margin: 0; font: 0.9rem/1.9 ui-monospace, monospace; white-space: pre-wrap;
  overflow-wrap: anywhere; }}
.text span {{ padding: 0.15rem 0; border-radius: 3px; box-decoration-break: clone;
  -webkit-box-decoration-break: clone; box-shadow: inset 1px 0 0 var(--back); }}
.piece {{ background: var(--piece); }}
.masked {{ background: color-mix(in srgb, var(--mask) 55%, transparent); }}
.frame {{ color: var(--faint); }}
"""


def words(parts: Sequence[Part]) -> str:
    """The findings as lines for a terminal."""
    return "\n\n".join("\n".join(_lines(subject.name, found)) for subject, found in parts)


def _lines(name: str, found: Findings) -> list[str]:
    width = max(len(row) for row, _ in found.rows)
    lines = [name] + [f"  {row.ljust(width)}  {text}" for row, text in found.rows]
    for histogram in found.histograms:
        lines.append(f"  {histogram.title}")
        ranges = _ranges(histogram)
        wide = max(map(len, ranges))
        most = max(histogram.counts)
        for span, count in zip(ranges, histogram.counts, strict=True):
            bar = "#" * -(-BAR * count // most)
            lines.append(f"    {span.rjust(wide)}  {bar.ljust(BAR)} {count:5,}")
    return lines


def _ranges(histogram: Histogram) -> list[str]:
    edges = [f"{edge:,.4g}" for edge in histogram.edges]
    return [f"{low} to {high}" for low, high in pairwise(edges)]


def page(title: str, parts: Sequence[Part]) -> bytes:
    """The findings and the samples as one HTML page that needs nothing else."""
    return document(title, STYLE, f"<h1>{escape(title)}</h1>\n{''.join(map(_section, parts))}")


def _section(part: Part) -> str:
    subject, found = part
    rows = "".join(
        f"<tr><th>{escape(row)}</th><td>{escape(text)}</td></tr>\n" for row, text in found.rows
    )
    bars = "".join(map(_bars, found.histograms))
    # as many side by side as the sheet has, as long as there is room
    narrowest = {1: 20, 2: 24}.get(subject.picture.columns, 11)
    columns = f"repeat(auto-fill, minmax(min(100%, {narrowest}rem), 1fr))"
    samples = "".join(_sample(part, number) for number in range(len(found.shown)))
    return (
        f"<section>\n<h2>{escape(subject.name)}</h2>\n<table>\n{rows}</table>\n{bars}"
        f"<h2>{escape(heading(subject))}</h2>\n"
        f'<div class="samples" style="grid-template-columns: {columns}">\n{samples}</div>\n'
        "</section>\n"
    )


def _bars(histogram: Histogram) -> str:
    most = max(histogram.counts)
    rows = "".join(
        f'<span>{escape(span)}</span><i style="width: {100 * count / most:.1f}%"></i>'
        f"<span>{count:,}</span>\n"
        for span, count in zip(_ranges(histogram), histogram.counts, strict=True)
    )
    return f'<div class="bars">\n<h3>{escape(histogram.title)}</h3>\n{rows}</div>\n'


def _sample(part: Part, number: int) -> str:
    subject, found = part
    shown = found.shown[number]
    content = subject.picture.html(shown)
    if content is None:
        png = b64encode(picture(subject, shown, 12 / subject.picture.columns / 1.5)).decode()
        content = f'<img alt="{escape(shown.title)}" src="data:image/png;base64,{png}">'
    return f"<figure>\n<figcaption>{escape(shown.title)}</figcaption>\n{content}\n</figure>\n"
