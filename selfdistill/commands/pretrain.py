"""``selfdistill pretrain``."""

import argparse

from selfdistill.commands.shared import CONFIG, Commands, add_command, names_recipes


def add(commands: Commands) -> None:
    pretrain = add_command(
        commands,
        "pretrain",
        [
            "pretrain image/sample run_dir=runs/mine optim.lr=1e-3",
            "pretrain audio/base_visible 'data.train=[data/clips]' train.accumulate=4",
        ],
        help="pretrain an encoder from a config",
        description="Pretrain an encoder from a config. Run it again to go on where it stopped.",
    )
    names_recipes(pretrain.add_argument("config", metavar="CONFIG", help=CONFIG))
    pretrain.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="key=value",
        help="such as optim.lr=1e-3; the last one wins",
    )
    pretrain.add_argument(
        "--resume", action="store_true", help="refuse to start afresh if there is no checkpoint"
    )
    pretrain.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from selfdistill.config_files.load import load_config
    from selfdistill.config_files.recipes import find_config
    from selfdistill.engine.processes import lost_processes_explained
    from selfdistill.modalities.base import load_modality
    from selfdistill.pretrain import pretrain

    config = load_config(find_config(options.config), options.overrides, load_modality)
    with lost_processes_explained():
        pretrain(config, must_resume=options.resume)
