"""The command line: ``selfdistill`` and ``python -m selfdistill``."""

import argparse
import errno
import io
import logging
import os
import platform
import select
import sys
import time
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn, TextIO

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
from selfdistill.errors import DataBudgetError, SelfdistillError, UserError
from selfdistill.outputs import say
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
WRITE_ERRORS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EBUSY,
)
DISK_ERRORS = (*WRITE_ERRORS, errno.EIO, errno.ESTALE, errno.EISDIR, errno.ENOTDIR)
OF_ONE_PROCESS = (SelfdistillError, DataBudgetError)
"""Errors, but not their subclasses, of one process of a run, which says them whichever it is."""
HEAD_START = 2.0
"""Seconds in which the first process says a mistake that all have, and launchers end the others.
Less than those after which a process gives up that has lost another one."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code (see ``selfdistill.errors``)."""
    _open_what_is_closed()
    if isinstance(sys.stdout, io.TextIOWrapper):  # the name of a file need not be text
        sys.stdout.reconfigure(errors="backslashreplace")
    sys.excepthook = _unforeseen
    options = _parse(argv)
    # every process of a run has the same warnings; one says them
    log_to_console(logging.WARNING if _rank() == "0" else logging.CRITICAL)
    try:
        options.run(options)
        sys.stdout.flush()
    except SelfdistillError as error:
        _say(error)
        return error.exit_code
    except BrokenPipeError:
        if not _is_closed(sys.stdout):
            raise
        _drop(sys.stdout)  # such as "| head": what is left needs no reader
        if _is_closed(sys.stderr):  # it may be this one, in the midst of the work
            _drop(sys.stderr)
            return SelfdistillError.exit_code
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            _say(UserError(f"{error.filename}: {error.strerror}"))
            return UserError.exit_code
        if error.errno not in DISK_ERRORS:
            raise
        what = "write" if error.errno in WRITE_ERRORS else "read or write"
        where = error.filename2 or error.filename or "the output"
        say(f"selfdistill: cannot {what} {where}: {error.strerror}")
        _drop(sys.stdout)
        return SelfdistillError.exit_code
    return 0


def _open_what_is_closed() -> None:
    """Python has None for a stream that is closed when it starts, as by ``>&-``; and the next file
    that is opened would take its number, and get what is meant for the stream."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))


def _rank() -> str:
    return os.environ.get("RANK", "0")


def _say(error: SelfdistillError) -> None:
    """Once, where all processes of a run have it; but what one has alone, whichever it is."""
    words = redacted(str(error))
    if _rank() != "0" and type(error) not in OF_ONE_PROCESS:
        if not isinstance(error, UserError):
            return  # all judge by the same figures, and a signal to one stops all
        time.sleep(HEAD_START)
        words = f"process {_rank()}: {words}"
    say(f"selfdistill: {words}")


def _is_closed(stream: TextIO) -> bool:
    """Whether nobody reads the pipe any more; other pipes can break, too."""
    try:
        output = stream.fileno()
    except OSError:  # it is no file, as in a notebook
        return False
    poll = select.poll()
    poll.register(output, 0)  # errors are told unasked
    return bool(poll.poll(0))


def _drop(stream: TextIO) -> None:
    """Let what cannot be written go nowhere; at its end Python would try again."""
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """argparse takes key=value only in one piece; here options may stand between them."""
    parser = _parser()
    if "_ARGCOMPLETE" in os.environ:  # a shell asks what could come next
        import argcomplete

        argcomplete.autocomplete(parser)
    options, rest = parser.parse_known_args(argv)
    if rest:
        words: list[str] | None = getattr(options, "overrides", None)
        if words is None or not all("=" in word and word[0] != "-" for word in rest):
            how = "" if words is None else "; keys are given as key=value, such as train.steps=100"
            options.parser.error(f"unrecognized arguments: {' '.join(rest)}{how}")
        options.overrides = [*(words or ()), *rest]
    return options


def _unforeseen(*error: Any) -> None:
    """Show an error that nobody foresaw, but not what may be secret in its words.

    Of Ctrl-C, after which Python ends the process by the signal, no more than a line.
    """
    if error[0] is KeyboardInterrupt:
        if _rank() == "0":
            print("selfdistill: interrupted", file=sys.stderr)
        return
    print(redacted("".join(traceback.format_exception(*error))), file=sys.stderr, end="")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        super().error(redacted(message))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="selfdistill",
        description="Self-supervised pretraining by self-distillation (data2vec 1.0 and 2.0) for "
        "audio, images and text.",
        epilog=examples("pretrain image/sample_visible", "pretrain --help"),
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
