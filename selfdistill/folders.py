"""What lies in a folder and below, and names as text."""

import os
from collections.abc import Iterator
from pathlib import Path

from selfdistill.errors import UserError


def as_text(name: str | Path) -> str:
    """A path as text, whatever the locale; bytes of it that are none are spelt out."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def files_below(folder: Path, key: str, without: Path | None = None) -> Iterator[tuple[str, str]]:
    """All but folders, in the order of the relative paths: path, and relative path.

    What begins with a dot is left out. Links are followed, but not in circles; those that lead
    nowhere are given back as they are.

    Args:
        key: what the user calls the folder, for the error messages.
        without: a folder that is left out, resolved.

    Raises:
        UserError: a folder cannot be read.
    """
    return _inside(folder, "", key, (without,) if without else ())


def _inside(
    folder: Path, prefix: str, key: str, done: tuple[Path, ...]
) -> Iterator[tuple[str, str]]:
    here = folder.resolve()
    if here in done:  # a link may lead upwards
        return
    try:
        found = sorted(os.scandir(folder), key=lambda entry: os.fsencode(entry.name))
    except OSError as error:
        raise UserError(f"{key}: cannot read folder '{folder}': {error.strerror}") from error
    for entry in found:
        if entry.name.startswith("."):
            continue
        if _is_folder(entry):
            yield from _inside(Path(entry.path), f"{prefix}{entry.name}/", key, (*done, here))
        else:
            yield entry.path, prefix + entry.name


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
