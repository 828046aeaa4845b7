"""Files that a command is asked to write, refused before any work is done where they cannot be; and
what is said on stderr, where perhaps nobody reads it."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from selfdistill.errors import UserError


def check_output(path: Path, option: str, endings: Sequence[str] = ()) -> None:
    """
    Args:
        path: of the file.
        option: by which the user named it.
        endings: that its name may have; empty: any.

    Raises:
        UserError: its name ends otherwise, it is a folder, or there is no folder for it that can
            be written to.
    """
    if endings and not path.name.lower().endswith(tuple(endings)):
        *others, last = endings
        known = f"{', '.join(others)} or {last}" if others else last
        raise UserError(f"{option}: '{path}' must end in {known}")
    if path.is_dir():
        raise UserError(f"{option}: '{path}' is a folder; name a file")
    if not path.parent.is_dir():
        raise UserError(f"{option}: there is no folder '{path.parent}'; make it first")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise UserError(f"{option}: cannot write to '{path.parent}'; choose another folder")


def say(line: str) -> None:
    """Print on stderr. Where it cannot be written, as to a pipe that nobody reads or a full disk,
    what comes goes nowhere, because no work should end of that."""
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
