"""The command line: ``selfdistill`` and ``python -m selfdistill``."""

import argparse
import errno
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from selfdistill.errors import DataBudgetError, SelfdistillError

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code (see ``selfdistill.errors``)."""
    options = _parser().parse_args(argv)
    # every process of a run has the same warnings and most errors; one says them
    first = os.environ.get("RANK", "0") == "0"
    level = logging.WARNING if first else logging.CRITICAL
    logging.basicConfig(level=level, format="%(levelname)s: %(message)s")
    try:
        options.run(options)
    except SelfdistillError as error:
        if first or type(error) in (SelfdistillError, DataBudgetError):
            print(f"selfdistill: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        print(f"selfdistill: cannot write {error.filename}: {error.strerror}", file=sys.stderr)
        return SelfdistillError.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="selfdistill", description="Self-supervised pretraining by self-distillation."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
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
    pretrain.set_defaults(run=_pretrain)
    return parser


def _pretrain(options: argparse.Namespace) -> None:
    # torch takes seconds to import; a typing error should not
    from selfdistill.config_file import load_config
    from selfdistill.modalities.base import load_modality
    from selfdistill.pretrain import pretrain

    config = load_config(options.config, options.overrides, load_modality)
    pretrain(config, must_resume=options.resume)
