"""``selfdistill report``."""

import argparse
from pathlib import Path

from selfdistill.commands.shared import Commands, add_command, path


def add(commands: Commands) -> None:
    report = add_command(
        commands,
        "report",
        ["report runs/image-sample --out letters.html"],
        help="write one page about a run, or about several beside each other",
        description="Write one HTML page from the folder of a run, without network: whether it is "
        "healthy and why, what its probes read against the baselines, curves with their healthy "
        "bands and what to try outside them, hardware, and settings. Several runs are compared.",
    )
    report.add_argument("runs", nargs="+", type=path, metavar="RUN", help="the folder of a run")
    report.add_argument(
        "--out",
        type=path,
        metavar="FILE.html",
        help="default: report.html, with the run's name in front if it is one",
    )
    report.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from selfdistill.reports.report import report

    one = options.runs[0].resolve().name + "-" if len(options.runs) == 1 else ""
    out = options.out or Path(f"{one}report.html")
    verdicts = report(options.runs, out)
    for name, verdict in verdicts.items():
        reasons = "; ".join(finding.text for finding in verdict.findings)
        print(f"{name}: {verdict.words.lower()}" + (f": {reasons}" if reasons else ""))
    print(f"written to {out}")
