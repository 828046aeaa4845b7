"""Inputs named on a command line, as samples: files, folders of them, lines of text, shards."""

import os
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from selfdistill.data.elsewhere.address import Remote
from selfdistill.data.locations import SUFFIXES, Location, resolve
from selfdistill.data.plain import Samples
from selfdistill.data.shards import ShardSet
from selfdistill.errors import BadSample, UserError
from selfdistill.folders import files_below

STDIN = Path("-")
LINES = "txt"
"""Files with this extension hold one sample per line; in a shard such a member is one sample."""
_KEY = "INPUT"


class FileSet:
    """One sample per file, named by its path."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)
        self.keys = [str(path) for path in self.paths]

    def read(self, i: int) -> tuple[str, dict[str, bytes]]:
        """Raises ``BadSample`` where the file cannot be read."""
        path = self.paths[i]
        try:
            return self.keys[i], {_extension(path): path.read_bytes()}
        except OSError as error:
            raise BadSample("cannot be read", str(error.strerror)) from error


class LineSet:
    """One sample per line of text files, named PATH:LINE counting from 1.

    All lines are read when it is made, empty ones included.

    Args:
        paths: the files; ``STDIN`` for the standard input.

    Raises:
        UserError: one cannot be read, or is not UTF-8.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.keys: list[str] = []
        self._lines: list[bytes] = []
        for path in paths:
            # not splitlines, whose further line ends no editor counts
            lines = _utf8(path).removesuffix(b"\n").split(b"\n")
            self.keys += [f"{path}:{number}" for number in range(1, len(lines) + 1)]
            # that of \r\n is no part of the line, and a byte-level tokenizer has a token for it
            self._lines += [line.removesuffix(b"\r") for line in lines]

    def read(self, i: int) -> tuple[str, dict[str, bytes]]:
        return self.keys[i], {LINES: self._lines[i]}


def _utf8(path: Path) -> bytes:
    try:
        data = sys.stdin.buffer.read() if path == STDIN else path.read_bytes()
        data.decode("utf-8")
    except OSError as error:
        raise UserError(f"{_KEY}: cannot read '{path}': {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{_KEY}: '{path}' is not UTF-8 ({error.reason} at byte {error.start}); convert it, "
            f"for example with iconv -t UTF-8"
        ) from error
    return data


def find_inputs(names: Sequence[str]) -> list[Location]:
    """The files that ``names`` stand for; none is opened.

    Args:
        names: files, folders (given back as they are), ``-`` for the standard input, and whatever
            else ``locations.resolve`` takes: globs, brace lists, ``sample://`` shards, URLs of
            shards.

    Raises:
        UserError: a name matches nothing, or cannot be used.
        SelfdistillError: a store could not be listed.
    """
    found: list[Location] = []
    for name in names:
        path = Path(name)
        # not path.is_dir(), for which a long URL is an error
        is_whole = path == STDIN or os.path.isdir(path)
        found += [path] if is_whole else resolve([name], _KEY)
    return found


def open_inputs(inputs: Sequence[Location], extensions: Sequence[str]) -> list[Samples]:
    """The samples of what ``find_inputs`` gave, in its order.

    A folder stands for what can be used in it and below (``files_below``). Shards are indexed and
    lines read at once, other files only when their turn comes.

    Args:
        extensions: the pipeline's.

    Raises:
        UserError: a file is of no use to the pipeline, a folder has none that is or cannot be
            read, a shard cannot be read, or a text file is not UTF-8.
        SelfdistillError: a shard elsewhere could not be reached.
    """
    kinds = [entry for location in inputs for entry in _kinds(location, extensions)]
    found: list[Samples] = []
    for kind, group in groupby(kinds, key=lambda entry: entry[0]):
        members = [location for _, location in group]
        if kind is ShardSet:
            found.append(ShardSet(members, extensions, _KEY))
        else:
            paths = [path for path in members if isinstance(path, Path)]
            found.append(LineSet(paths) if kind is LineSet else FileSet(paths))
    return found


def _kinds(path: Location, extensions: Sequence[str]) -> list[tuple[type, Location]]:
    if isinstance(path, Remote):
        if not path.name.endswith(SUFFIXES):
            raise UserError(
                f"{_KEY}: '{path}' is not on this machine; only shards ({', '.join(SUFFIXES)}) are "
                "read from elsewhere"
            )
        return [(ShardSet, path)]
    found: list[tuple[type, Location]]
    if path.is_dir():
        inside = [Path(name) for name, _ in files_below(path, _KEY)]
        found = [(kind, p) for p in inside if p.is_file() and (kind := _kind(p, extensions))]
        what = f"folder '{path}' holds nothing that this model takes"
    else:
        kind = _kind(path, extensions)
        found = [(kind, path)] if kind else []
        what = f"'{path}' is nothing that this model takes"
    if not found:
        taken = ", ".join(f".{extension}" for extension in extensions)
        raise UserError(f"{_KEY}: {what}; give {taken}, or shards ({', '.join(SUFFIXES)})")
    return found


def _kind(path: Path, extensions: Sequence[str]) -> type | None:
    if path.name.lower().endswith(SUFFIXES):
        return ShardSet
    extension = LINES if path == STDIN else _extension(path)
    if extension not in extensions:
        return None
    return LineSet if extension == LINES else FileSet


def _extension(path: Path) -> str:
    return path.suffix.lower().removeprefix(".")
