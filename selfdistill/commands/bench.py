"""``selfdistill bench``."""

import argparse
from pathlib import Path

from selfdistill.commands.shared import Commands


def add(commands: Commands) -> None:
    bench = commands.add_parser(
        "bench",
        help="measure how fast a config runs on this machine",
        description="Measure how fast a config runs on this machine. data: what makes its batches: "
        "on one core by stage, and the loader with data.workers as a whole.",
        usage="%(prog)s data CONFIG [key=value ...] [--json]",
    )
    bench.add_argument("part", choices=("data",), help="what is measured")
    bench.add_argument("config", type=Path, metavar="CONFIG", help="a YAML file")
    bench.add_argument("overrides", nargs="*", metavar="key=value", help="such as data.workers=4")
    bench.add_argument("--json", action="store_true", help="print one JSON object")
    bench.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    import json

    from selfdistill.bench.data import bench_data
    from selfdistill.bench.data_table import table
    from selfdistill.config_file import load_config
    from selfdistill.modalities.base import load_modality

    config = load_config(options.config, options.overrides, load_modality)
    result = bench_data(config)
    print(json.dumps(result) if options.json else table(result))
