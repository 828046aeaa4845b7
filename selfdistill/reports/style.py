"""How the page of a report looks: narrow and wide, light and dark, on screen and on paper."""

from selfdistill.plots import COLOURS

_DARK = ("#4CB2F0", "#FF8A4A", "#2FC795", "#E79BC4", "#F0B429", "#8CCBF2", "#E6E7E9")


def _colours(names: tuple[str, ...]) -> str:
    return " ".join(f"--c{number}: {colour};" for number, colour in enumerate(names))


_LIGHT_SCHEME = f"""--back: #f4f5f7; --card: #fff; --ink: #1b1d21; --faint: #5f646c;
  --line: #dcdfe4; --grid: #e8eaee; --good: #1f8f4d; --warn: #b26a00; --bad: #c9301c;
  --early: #5f646c; --bar: #a9b0ba; --track: #eceef1; {_colours(COLOURS)}"""
_DARK_SCHEME = f"""--back: #131518; --card: #1c1f24; --ink: #e8e9ec; --faint: #9ca2ab;
  --line: #33373e; --grid: #2a2e34; --good: #3cc47c; --warn: #f0ad3e; --bad: #ff6b57;
  --early: #9ca2ab; --bar: #626974; --track: #2a2e34; {_colours(_DARK)}"""

STYLE = f"""
:root {{ color-scheme: light dark; {_LIGHT_SCHEME} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_DARK_SCHEME} }} }}
* {{ box-sizing: border-box; }}
html {{ -webkit-text-size-adjust: 100%; }}
body {{ margin: 0 auto; padding: 1.2rem 1rem 3rem; max-width: 78rem; background: var(--back);
  color: var(--ink); font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
  overflow-wrap: anywhere; }}
h1 {{ font-size: 1.6rem; line-height: 1.2; margin: 0 0 0.3rem; }}
h2 {{ font-size: 1.2rem; margin: 2.4rem 0 0.7rem; }}
h3 {{ font-size: 1rem; margin: 0; }}
h4 {{ font-size: 0.95rem; margin: 1.6rem 0 0.6rem; color: var(--faint); font-weight: 600; }}
p {{ margin: 0; }}
code {{ font: 0.87em ui-monospace, "SF Mono", Menlo, Consolas, monospace; }}
.faint, .sub {{ color: var(--faint); }}
.sub {{ font-size: 0.92rem; }}
h2 + .sub {{ margin-bottom: 0.9rem; }}
.small {{ font-size: 0.85rem; line-height: 1.45; }}
.card {{ background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 0.9rem 0.9rem 1rem; min-width: 0; }}
.grid {{ display: grid; gap: 0.9rem; align-items: stretch;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 20.5rem), 1fr)); }}
.tiles {{ display: grid; gap: 0.9rem; margin-top: 0.9rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 9.5rem), 1fr)); }}
.tile b {{ display: block; font-size: 1.35rem; line-height: 1.3; font-weight: 650;
  font-variant-numeric: tabular-nums; }}
.tile {{ font-size: 0.85rem; color: var(--faint); }}
.tile b {{ color: var(--ink); }}
.verdict {{ margin-top: 1rem; border-left: 6px solid var(--tone); }}
.verdict h2 {{ margin: 0; font-size: 1.3rem; color: var(--tone); }}
.verdict ul {{ margin: 0.5rem 0 0; padding: 0; list-style: none; }}
.verdict li + li {{ margin-top: 0.6rem; }}
.healthy {{ --tone: var(--good); }} .look {{ --tone: var(--warn); }}
.collapsed {{ --tone: var(--bad); }} .early {{ --tone: var(--early); }}
.chip {{ display: inline-block; padding: 0.05rem 0.55rem; border-radius: 1rem; font-size: 0.8rem;
  font-weight: 600; color: var(--tone); border: 1px solid var(--tone); white-space: nowrap; }}
.figure {{ display: flex; flex-direction: column; gap: 0.35rem; }}
.figure header {{ display: flex; gap: 0.6rem; align-items: baseline;
  justify-content: space-between; }}
.figure header b {{ font-variant-numeric: tabular-nums; white-space: nowrap; }}
.figure.is-out {{ border-color: var(--tone); }}
.figure.is-out header b, .figure .alarm {{ color: var(--tone); }}
.figure .alarm {{ font-weight: 600; }}
svg.chart {{ display: block; width: 100%; height: auto; overflow: visible;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
  stroke-linejoin: round; stroke-linecap: butt; }}
.key {{ display: flex; flex-wrap: wrap; gap: 0.1rem 1rem; font-size: 0.83rem;
  color: var(--faint); }}
.key i {{ display: inline-block; width: 1.3rem; height: 0; margin-right: 0.4rem;
  vertical-align: 0.25em; border-top: 2.5px solid var(--tone, var(--faint)); }}
.dash {{ border-top-style: dashed !important; }} .dot {{ border-top-style: dotted !important; }}
.bars {{ display: grid; gap: 0.55rem; margin: 0.6rem 0 0.4rem; }}
.bars div > span {{ display: flex; justify-content: space-between; gap: 0.6rem;
  font-size: 0.85rem; font-variant-numeric: tabular-nums; }}
.bars div > span > span {{ white-space: nowrap; color: var(--faint); }}
.bars .own {{ font-weight: 650; }} .bars .own > span > span {{ color: var(--ink); }}
.track {{ position: relative; display: block; height: 0.7rem; border-radius: 3px;
  background: var(--track); margin-top: 0.15rem; }}
.track i {{ position: absolute; inset: 0 auto 0 0; border-radius: 3px; background: var(--bar); }}
.own .track i {{ background: var(--c0); }}
.track u {{ position: absolute; top: 50%; height: 0; border-top: 1.5px solid var(--ink); }}
.track u::before, .track u::after {{ content: ""; position: absolute; top: -4.5px; height: 7.5px;
  border-left: 1.5px solid var(--ink); }}
.track u::before {{ left: 0; }} .track u::after {{ right: 0; }}
.track s {{ position: absolute; top: -2px; bottom: -2px; border-left: 1.5px dashed var(--faint); }}
table {{ border-collapse: collapse; width: 100%; font-size: 0.9rem; }}
th, td {{ text-align: left; vertical-align: top; padding: 0.32rem 0.9rem 0.32rem 0;
  border-bottom: 1px solid var(--line); }}
tr:last-child > * {{ border-bottom: 0; }}
th {{ font-weight: 500; color: var(--faint); }}
.pairs th {{ width: 34%; min-width: 8rem; }}
.runs thead th {{ color: var(--ink); font-weight: 600; }}
.runs td {{ font-variant-numeric: tabular-nums; }}
.runs th, .runs td {{ overflow-wrap: normal; }}
.runs .long {{ overflow-wrap: anywhere; }}
.runs :is(th, td):has(.long) {{ min-width: 7rem; }}
@media screen {{ .card:has(> .runs) {{ overflow-x: auto; }} }}
.best {{ font-weight: 700; }}
.legend {{ list-style: none; margin: 1rem 0 0; padding: 0; display: grid; gap: 0.9rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 20.5rem), 1fr)); }}
.legend li {{ border-top: 4px solid var(--tone); }}
.legend b {{ display: block; }}
summary {{ cursor: pointer; color: var(--faint); font-weight: 500; padding: 0.3rem 0; }}
.card > details {{ margin-top: 0.6rem; }}
.figure > details {{ margin: 0; }}
.figure.is-out summary {{ color: var(--tone); font-weight: 650; }}
.pictures {{ columns: 26rem; column-gap: 0.9rem; }}
figure {{ margin: 0 0 0.9rem; break-inside: avoid; }}
figure img {{ display: block; max-width: 100%; height: auto; margin: 0 auto; border-radius: 6px;
  background: #fff; }}
figcaption {{ font-size: 0.85rem; color: var(--faint); margin-bottom: 0.4rem; }}
footer {{ margin-top: 2.5rem; font-size: 0.82rem; color: var(--faint); }}
@media (max-width: 640px) {{
  h1 {{ font-size: 1.35rem; }}
  .tiles {{ grid-template-columns: repeat(2, minmax(0, 1fr)); }}
  .pairs th {{ width: 40%; }}
  .runs thead {{ display: none; }}
  .runs tr {{ display: block; padding: 0.5rem 0; border-bottom: 1px solid var(--line); }}
  .runs tr:last-child {{ border-bottom: 0; }}
  .runs th, .runs td {{ display: block; border: 0; padding: 0.1rem 0; }}
  .runs th {{ color: var(--ink); font-weight: 600; }}
  .runs td {{ display: flex; flex-wrap: wrap; gap: 0 1rem; }}
  .runs td::before {{ content: attr(data-run); color: var(--faint); overflow-wrap: anywhere; }}
  .runs td > span {{ margin-left: auto; text-align: right; }}
}}
@media print {{
  :root {{ color-scheme: light; {_LIGHT_SCHEME} --back: #fff; }}
  * {{ print-color-adjust: exact; -webkit-print-color-adjust: exact; }}
  html {{ font-size: 12px; }}
  body {{ padding: 0; max-width: none; }}
  .card, tr {{ break-inside: avoid; }}
  h2, h3, h4, .sub {{ break-after: avoid; }}
  .grid, .legend {{ grid-template-columns: repeat(2, minmax(0, 1fr)); }}
}}
"""
