"""The live view of a run in a terminal, from the files in its folder."""

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import isfinite, nan
from pathlib import Path
from typing import Any, TextIO, TypeVar

from selfdistill.errors import UserError
from selfdistill.reports.assess import Group, assess, groups
from selfdistill.reports.frame import Line, View, frame
from selfdistill.reports.life import holder, life
from selfdistill.run_folder.files import MetricsFile, Row, checkpoints, read_config, read_result
from selfdistill.run_folder.layout import CONFIG, LOCK, METRICS
from selfdistill.run_folder.record import Record

Found = TypeVar("Found")
_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
_HOME, _REST_OF_LINE, _REST_OF_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"
_LONGEST = 86_400
"""Seconds between two looks; the system cannot wait for just any number of them."""
_TONES = {
    "bold": "1",
    "faint": "2",
    "healthy": "1;32",
    "early": "1",
    "look": "1;33",
    "collapsed": "1;31",
}


class Watcher:
    """Looks at a run again and again.

    Args:
        path: the run's folder.

    Raises:
        UserError: it is no run.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._metrics = MetricsFile(path)
        self._config: dict[str, Any] = {}
        self._judged: tuple[object, list[Group]] = (None, [])
        if not path.is_dir():
            raise UserError(f"{path}: there is no such folder; give the folder of a run")
        if not any((path / name).exists() for name in (CONFIG, LOCK, METRICS)):
            raise UserError(f"{path}: holds no run (no config.yaml); give the folder of a run")
        if (path / CONFIG).exists():
            self._config = read_config(path)

    def look(self, now: float) -> View:
        """The run as it is; ``now`` in seconds since the epoch."""
        troubles: list[str] = []

        def read(what: Callable[[], Found], otherwise: Found) -> Found:
            try:
                return what()
            except UserError as error:  # it is being written, or the server of files is away
                troubles.append(str(error))
                return otherwise

        if (self._path / CONFIG).exists():
            self._config = read(lambda: read_config(self._path), self._config)
        rows: list[Row] = read(self._metrics.read, [])
        result: dict[str, Any] = read(lambda: read_result(self._path), {})
        record = Record(self._path, self._config, {}, rows, result)
        age = max(now - self._metrics.changed, 0.0) if rows else nan
        found = self._groups(record)
        waited = age if isfinite(age) else _since_start(self._path, now)
        saved = checkpoints(self._path)
        return View(
            record,
            found,
            assess(record, found),
            life(record, holder(self._path), waited, saved),
            age,
            saved,
            now,
            troubles,
        )

    def _groups(self, record: Record) -> list[Group]:
        """Only what is new is worth the work."""
        mark = (len(record.rows), record.rows[-1:], record.config)
        if mark != self._judged[0]:
            self._judged = (mark, groups(record))
        return self._judged[1]


def _since_start(run: Path, now: float) -> float:
    try:
        return max(now - (run / LOCK).stat().st_mtime, 0.0)
    except OSError:
        return nan


def watch(path: Path, every: float, once: bool, out: TextIO | None = None) -> None:
    """Show a run until Ctrl-C, or once.

    Args:
        path: the run's folder.
        every: seconds between two looks.
        once: show it once; so it is done, too, where ``out`` is no terminal.
        out: where to write to; None: stdout.

    Raises:
        UserError: the folder is no run, or ``every`` makes no sense.
    """
    if not 0 < every <= _LONGEST:
        raise UserError(
            f"--every: {every:g} is no number of seconds above 0 and up to {_LONGEST}, a day"
        )
    out = out or sys.stdout
    watcher = Watcher(path)
    live = _obeys(out) and not once
    if live:
        with _screen(out):
            while True:
                lines = _lines(watcher, out)
                shown = _fitting(lines, shutil.get_terminal_size().lines)
                body = f"{_REST_OF_LINE}\n".join(_toned(line, out) for line in shown)
                _write(out, f"{_HOME}{body}{_REST_OF_LINE}{_REST_OF_SCREEN}")
                time.sleep(every)
    # what was seen last stays in the terminal
    lines = _lines(watcher, out)
    _write(out, "\n".join(_toned(line, out) for line in lines) + "\n")


def _lines(watcher: Watcher, out: TextIO) -> list[Line]:
    width = shutil.get_terminal_size().columns if out.isatty() else 100
    return frame(watcher.look(time.time()), width, _shows_blocks(out))


def _obeys(out: TextIO) -> bool:
    """Whether it is a terminal that takes commands."""
    return out.isatty() and os.environ.get("TERM") != "dumb"


def _shows_blocks(out: TextIO) -> bool:
    try:
        "\u2581\u2588".encode(out.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _fitting(lines: Sequence[Line], height: int) -> list[Line]:
    if len(lines) <= height:
        return list(lines)
    hidden = len(lines) - height + 1
    return [*lines[: height - 1], Line(f"... {hidden} more lines in a taller window", "faint")]


def _toned(line: Line, out: TextIO) -> str:
    if line.tone not in _TONES or not _obeys(out) or os.environ.get("NO_COLOR"):
        return line.text
    return f"\x1b[{_TONES[line.tone]}m{line.text}\x1b[0m"


def _write(out: TextIO, text: str) -> None:
    encoding = out.encoding or "ascii"
    out.write(text.encode(encoding, "replace").decode(encoding))
    out.flush()


@contextmanager
def _screen(out: TextIO) -> Iterator[None]:
    """A screen of its own, which is gone afterwards, whatever ends it; Ctrl-C ends it quietly."""

    def leave(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        _write(out, _ENTER)
        yield
    except KeyboardInterrupt:
        pass
    finally:
        _write(out, _LEAVE)
        signal.signal(signal.SIGTERM, before)
