"""``selfdistill watch``."""

import argparse

from selfdistill.commands.shared import Commands, add_command, path


def add(commands: Commands) -> None:
    watch = add_command(
        commands,
        "watch",
        ["watch runs/image-sample"],
        help="show a run that goes on, in the terminal",
        description="Show how far a run has come, whether it is healthy and still alive, its "
        "figures with their bands, its last evaluation and its newest checkpoint. Only the files "
        "in its folder are read, which may be on another host; the run is not touched. Ctrl-C "
        "ends it.",
    )
    watch.add_argument("path", type=path, metavar="RUN", help="the folder of a run")
    watch.add_argument(
        "--every", type=float, default=2.0, metavar="SECONDS", help="between two looks (default 2)"
    )
    watch.add_argument("--once", action="store_true", help="show it once and end")
    watch.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from selfdistill.reports.watch import watch

    watch(options.path, options.every, options.once)
