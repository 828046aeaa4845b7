"""``selfdistill compare``."""

import argparse

from selfdistill.commands.shared import Commands, add_command, path
from selfdistill.config import PROBES


def add(commands: Commands) -> None:
    compare = add_command(
        commands,
        "compare",
        ["compare runs/image-sample runs/image-sample-visible --out curves.svg"],
        help="draw the accuracy of runs over their training time",
        description="Draw the accuracy of runs over their training time, evaluations left out, and "
        "print when each had the final accuracy of the first one. Runs that differ in their seed "
        "only are drawn as one: their mean, and a band from the worst to the best.",
    )
    compare.add_argument("runs", nargs="+", type=path, metavar="RUN", help="the folder of a run")
    compare.add_argument("--out", type=path, required=True, metavar="FILE.svg", help="or .png")
    compare.add_argument("--task", help="of eval.tasks (default: each modality's first)")
    compare.add_argument("--probe", choices=PROBES, default="linear", help="(default linear)")
    compare.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from selfdistill.reports.compare import compare

    table = compare(options.runs, options.out, options.task, options.probe)
    print(f"{table}\n\nwritten to {options.out}")
