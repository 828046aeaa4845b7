"""``selfdistill inspect``."""

import argparse

from selfdistill.commands.shared import Commands, add_command, names_recipes, path, seed


def add(commands: Commands) -> None:
    inspect = add_command(
        commands,
        "inspect",
        [
            "inspect data/pictures",
            "inspect image/sample --out letters.html",
        ],
        help="say and show what is in shards, or in the data of a config",
        description="Say what is in shards, or in the data of a config, and show some samples; of "
        "a config as training sees them, with their masks.",
    )
    names_recipes(
        inspect.add_argument(
            "names",
            nargs="+",
            metavar="SHARDS|CONFIG",
            help="shards, folders and globs; or a YAML file or recipe, and key=value",
        )
    )
    inspect.add_argument(
        "--out", type=path, metavar="FILE.html", help="or .png, .svg: what the samples look like"
    )
    inspect.add_argument(
        "--tensorboard", type=path, metavar="DIR", help="write the picture for TensorBoard"
    )
    inspect.add_argument("--samples", type=int, default=12, help="that are shown (default 12)")
    inspect.add_argument("--seed", type=seed, default=0, help="of what is drawn (default 0)")
    inspect.add_argument(
        "--modality",
        default="",
        metavar="NAME",
        help="of the shards (default: as their members' names tell), or which one of the config",
    )
    inspect.set_defaults(run=_run, overrides=[])  # those behind an option


def _run(options: argparse.Namespace) -> None:
    from selfdistill.inspection.data import inspect_data

    table = inspect_data(
        [*options.names, *options.overrides],
        options.out,
        options.tensorboard,
        samples=options.samples,
        seed=options.seed,
        modality=options.modality,
    )
    print(table)
    for written in filter(None, (options.out, options.tensorboard)):
        print(f"\nwritten to {written}")
