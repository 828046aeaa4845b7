"""``selfdistill bench``."""

import argparse
import json
from typing import TYPE_CHECKING

from selfdistill.commands.shared import CONFIG, Commands, add_command, names_recipes, path

if TYPE_CHECKING:
    from selfdistill.config import RunConfig

DATA = "data"


def add(commands: Commands) -> None:
    bench = add_command(
        commands,
        "bench",
        [
            "bench image/sample train.batch_size=64",
            "bench data image/sample",
            "bench image/sample --profile step.json.gz --json",
        ],
        help="measure how fast a config trains on this machine",
        description="Measure how fast a config trains on this machine: samples and tokens per "
        "second, where the time of a step goes, its memory, and how far it is from the rate at "
        "which the machine multiplies matrices; then what bounds it and what to try. Nothing is "
        "written into the run's folder. With data in front of CONFIG, only what makes the batches: "
        "on one core by stage, and the loader with data.workers as a whole.",
        usage="%(prog)s [data] CONFIG [key=value ...] [--json] [--profile FILE] [--sweep batch] "
        "[--steps N]",
    )
    names_recipes(
        bench.add_argument(
            "overrides",
            nargs="+",
            metavar="CONFIG",
            help=f"{CONFIG}; and key=value such as train.precision=bf16",
        )
    )
    bench.add_argument("--json", action="store_true", help="print one JSON object")
    bench.add_argument(
        "--profile",
        type=path,
        metavar="FILE",
        help="write a trace of some steps, as .json or .json.gz, for ui.perfetto.dev",
    )
    bench.add_argument(
        "--sweep",
        choices=("batch",),
        help="measure one train.batch_size after the other, each twice as large, and tell the "
        "fastest and the largest that fits",
    )
    bench.add_argument(
        "--steps",
        type=int,
        metavar="N",
        help="that are measured (default: as many as take some ten seconds)",
    )
    bench.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from selfdistill.config_files.load import load_config
    from selfdistill.config_files.recipes import find_config
    from selfdistill.errors import UserError
    from selfdistill.modalities.base import load_modality

    only_data = options.overrides[0] == DATA  # else it is the config
    path, *overrides = options.overrides[only_data:] or [None]
    if path is None:
        raise UserError("bench data: which config? selfdistill bench data CONFIG")
    if only_data and (options.profile or options.sweep or options.steps is not None):
        raise UserError(
            "bench data: --profile, --sweep and --steps are of whole steps; leave data out"
        )
    if options.sweep and options.profile:
        raise UserError("--sweep: keeps no trace; leave --profile out, or --sweep")
    config = load_config(find_config(path), overrides, load_modality)
    if only_data:
        _bench_data(config, options.json)
    elif options.sweep:
        _sweep(config, options)
    else:
        _bench_step(config, options)


def _bench_data(config: "RunConfig", as_json: bool) -> None:
    from selfdistill.bench.data import bench_data
    from selfdistill.bench.data_table import table

    result = bench_data(config)
    print(json.dumps(result) if as_json else table(result))


def _sweep(config: "RunConfig", options: argparse.Namespace) -> None:
    from selfdistill.bench.step_table import sweep_table
    from selfdistill.bench.sweep import sweep_batch

    result = sweep_batch(config, options.steps)
    print(json.dumps(result) if options.json else sweep_table(result))


def _bench_step(config: "RunConfig", options: argparse.Namespace) -> None:
    from selfdistill.bench.step import bench_step
    from selfdistill.bench.step_table import table
    from selfdistill.engine.processes import lost_processes_explained

    with lost_processes_explained():
        result = bench_step(config, options.steps, options.profile)
    if result is not None:
        print(json.dumps(result) if options.json else table(result))
