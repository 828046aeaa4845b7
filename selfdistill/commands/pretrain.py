"""``selfdistill pretrain``."""

import argparse
from pathlib import Path

from selfdistill.commands.shared import Commands


def add(commands: Commands) -> None:
    pretrain = commands.add_parser(
        "pretrain",
        help="pretrain an encoder from a config",
        description="Pretrain an encoder from a config. Run it again to go on where it stopped.",
    )
    pretrain.add_argument("config", type=Path, metavar="CONFIG", help="a YAML file")
    pretrain.add_argument("overrides", nargs="*", metavar="key=value", help="such as optim.lr=1e-3")
    pretrain.add_argument(
        "--resume", action="store_true", help="refuse to start afresh if there is no checkpoint"
    )
    pretrain.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from selfdistill.config_file import load_config
    from selfdistill.engine.processes import lost_processes_explained
    from selfdistill.modalities.base import load_modality
    from selfdistill.pretrain import pretrain

    config = load_config(options.config, options.overrides, load_modality)
    with lost_processes_explained():
        pretrain(config, must_resume=options.resume)
