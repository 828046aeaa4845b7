"""The command line: ``selfdistill`` and ``python -m selfdistill``."""

import argparse
import errno
import logging
import os
import platform
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

from selfdistill.commands import (
    bench,
    compare,
    embed,
    export,
    inspect,
    pack,
    pretrain,
    probe,
    recipes,
    report,
    watch,
)
from selfdistill.commands.shared import HelpFormatter, examples
from selfdistill.errors import DataBudgetError, SelfdistillError
from selfdistill.redaction import log_to_console, redacted

COMMANDS = (
    recipes,
    pack,
    inspect,
    pretrain,
    embed,
    export,
    probe,
    compare,
    report,
    watch,
    bench,
)
"""In the order in which they are listed."""
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code (see ``selfdistill.errors``)."""
    options = _parse(argv)
    # every process of a run has the same warnings and most errors; one says them
    first = os.environ.get("RANK", "0") == "0"
    log_to_console(logging.WARNING if first else logging.CRITICAL)
    sys.excepthook = _unforeseen
    try:
        options.run(options)
    except SelfdistillError as error:
        if first or type(error) in (SelfdistillError, DataBudgetError):
            print(f"selfdistill: {redacted(str(error))}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        print(f"selfdistill: cannot write {error.filename}: {error.strerror}", file=sys.stderr)
        return SelfdistillError.exit_code
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """argparse takes key=value only in one piece; here options may stand between them."""
    parser = _parser()
    if "_ARGCOMPLETE" in os.environ:  # a shell asks what could come next
        import argcomplete

        argcomplete.autocomplete(parser)
    options, rest = parser.parse_known_args(argv)
    if rest:
        words = getattr(options, "overrides", None)
        if words is None or not all("=" in word and word[0] != "-" for word in rest):
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        words += rest
    return options


def _unforeseen(*error: Any) -> None:
    """Show an error that nobody foresaw, but not what may be secret in its words."""
    print(redacted("".join(traceback.format_exception(*error))), file=sys.stderr, end="")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        super().error(redacted(message))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="selfdistill",
        description="Self-supervised pretraining by self-distillation (data2vec 1.0 and 2.0) for "
        "audio, images and text.",
        epilog=examples("pretrain image/sample", "pretrain --help"),
        formatter_class=HelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="of this and what it runs on")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    return parser


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from selfdistill.versions import versions

        found = versions(("torch", "accelerate", "transformers"))
        for name, version in {**found, "python": platform.python_version()}.items():
            print(f"{name} {version or 'is not installed'}")
        parser.exit()
