"""What a run tells about itself: metrics.jsonl, TensorBoard and the console."""

import json
import logging
import math
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from selfdistill.amounts import duration
from selfdistill.durable import sync_file, write_atomically
from selfdistill.engine.run_dir import RunDir
from selfdistill.errors import SelfdistillError
from selfdistill.outputs import say

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

logger = logging.getLogger(__name__)

_REDRAW_SECONDS = 0.2
SHOWN = {
    "loss": ("loss", ".4f"),
    "samples_per_second": ("samples/s", ".1f"),
    "target_std": ("target std", ".3f"),
    "prediction_std": ("prediction std", ".3f"),
}
"""What the console shows, how it is called there, and its format."""


def by_modality(own: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Metrics of each modality in one line: where there are several, as NAME/METRIC."""
    return {
        f"{name}/{key}" if len(own) > 1 else key: value
        for name, values in own.items()
        for key, value in values.items()
    }


class MetricsWriter:
    """Writes one JSON object per logging interval, and the same to TensorBoard.

    A TensorBoard that is missing or fails costs one warning, never the run.

    Args:
        run_dir: of the run, held by this process.
        tensorboard: whether to write to TensorBoard.
    """

    def __init__(self, run_dir: RunDir, tensorboard: bool) -> None:
        self._run_dir = run_dir
        self._wanted = tensorboard
        self._board: SummaryWriter | None = None
        self._purge_step: int | None = None

    def resume_after(self, step: int, passed_over: Collection[int]) -> None:
        """Drop what was written after ``step``, and lines cut short by a crash.

        To be called where a run is resumed from a checkpoint.

        Args:
            step: of the checkpoint.
            passed_over: steps of the data that the run does not take any more, for which
                ``left_out.jsonl`` has the reason.
        """
        self.truncate_after(step)
        _keep(
            self._run_dir.left_out_path,
            lambda row: row["step"] <= step or row.get("data_step") in passed_over,
        )

    def truncate_after(self, step: int) -> None:
        """The same where a run goes back by itself, of which ``left_out.jsonl`` has to tell."""
        self._purge_step = step + 1
        self.close()
        _keep(self._run_dir.metrics_path, lambda row: row["step"] <= step)

    def written(self, step: int) -> dict[str, float]:
        """All that was written of a step; NaN where a figure was not finite."""
        path = self._run_dir.metrics_path
        rows = [row for line in _lines(path) if (row := _row(line)) and row["step"] == step]
        return {
            key: math.nan if value is None else value for row in rows for key, value in row.items()
        }

    def sync(self) -> None:
        """Wait until all lines are on the disk; raises as ``write`` where the folder was moved."""
        self._run_dir.check()
        for path in (self._run_dir.metrics_path, self._run_dir.left_out_path):
            if path.exists():
                sync_file(path)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append the metrics of a step; what is not finite becomes null.

        Raises:
            SelfdistillError: ``metrics.jsonl`` cannot be written, or the run's folder was moved.
        """
        self._run_dir.check()
        row = {key: value if math.isfinite(value) else None for key, value in values.items()}
        # first: an evaluation that has its line is not made again when a run goes on
        self._try_board(lambda board: _add_scalars(board, step, values))
        _append(self._run_dir.metrics_path, {"step": step} | row)

    def write_picture(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Show uint8 [height, width, 3] in TensorBoard."""
        self._try_board(lambda board: board.add_image(name, pixels, step, dataformats="HWC"))

    def write_left_out(self, row: Mapping[str, Any]) -> None:
        """Append what is known of a step that was left out; plain JSON values.

        Raises:
            SelfdistillError: ``left_out.jsonl`` cannot be written.
        """
        _append(self._run_dir.left_out_path, row)

    def close(self) -> None:
        """Flush what TensorBoard still holds back."""
        if self._board is not None:
            self._try_board(lambda board: board.close())
            self._board = None

    def _try_board(self, action: "Callable[[SummaryWriter], None]") -> None:
        if not self._wanted:
            return
        try:
            if self._board is None:
                from torch.utils.tensorboard import SummaryWriter

                threading.excepthook = _excepthook
                self._board = SummaryWriter(
                    str(self._run_dir.tensorboard), purge_step=self._purge_step
                )
            action(self._board)
            self._board.flush()  # its thread would keep two minutes, which a kill would lose
        except Exception as error:
            self._wanted = False
            logger.warning("TensorBoard fails (%r); the run goes on without it", error)


def _excepthook(error: threading.ExceptHookArgs) -> None:
    """But for TensorBoard's thread, whose error the next call has, too."""
    if not type(error.thread).__module__.startswith("tensorboard."):
        threading.__excepthook__(error)


def _append(path: Path, row: Mapping[str, Any]) -> None:
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    except OSError as error:
        raise SelfdistillError(f"cannot write {path}: {error}") from error


def _lines(path: Path) -> list[str]:
    if not path.exists():
        return []
    return path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)


def _row(line: str) -> dict[str, Any] | None:
    """What a whole line says of a step; None: it is none."""
    if not line.endswith("\n"):
        return None
    try:
        row: dict[str, Any] = json.loads(line)
        return {**row, "step": int(row["step"])}
    except (ValueError, TypeError, KeyError):
        return None


def _keep(path: Path, is_kept: Callable[[dict[str, Any]], bool]) -> None:
    """Leave the whole lines that are to be kept."""
    lines = _lines(path)
    kept = [line for line in lines if (row := _row(line)) is not None and is_kept(row)]
    if kept != lines:
        write_atomically(path, "".join(kept))


def _shown(values: Mapping[str, float], prefix: str = "") -> list[str]:
    return [
        f"{name} {values[prefix + key]:{form}}"
        for key, (name, form) in SHOWN.items()
        if prefix + key in values
    ]


def _add_scalars(board: "SummaryWriter", step: int, values: Mapping[str, float]) -> None:
    for key, value in values.items():
        board.add_scalar(key, value, global_step=step)


class Throughput:
    """Samples per second, by a clock that never goes back."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Begin a new interval, for example after an evaluation."""
        self._since = time.monotonic()
        self._samples = 0

    def add(self, samples: int) -> None:
        """Count samples."""
        self._samples += samples

    def take(self) -> float:
        """Samples per second since the last ``take`` or ``restart``; begins a new interval."""
        seconds = time.monotonic() - self._since
        rate = self._samples / seconds if seconds > 0 else 0.0
        self.restart()
        return rate


class Progress:
    """The console: a bar on a terminal, otherwise a line per logging interval, on stderr. Where
    nobody reads it any more, the run goes on.

    Args:
        steps: of the whole run.
        start_step: where this process begins.
        main: whether this is the main process; the others print nothing.
    """

    def __init__(self, steps: int, start_step: int, main: bool) -> None:
        self._steps = steps
        self._start_step = start_step
        self._main = main
        self._began = self._drawn = time.monotonic()
        self._bar: tqdm | None = None
        if main and sys.stderr.isatty():
            # tqdm's own rate and its redrawing follow the wall clock, so both are left out
            bar_format = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}"
            self._bar = tqdm(total=steps, initial=start_step, bar_format=bar_format)

    def advance(self, step: int) -> None:
        """Move the bar; cheap enough for every step."""
        if self._bar is not None:
            self._bar.n = step
            if time.monotonic() - self._drawn >= _REDRAW_SECONDS:
                self._drawn = time.monotonic()
                self._bar.refresh()

    def report(self, step: int, values: Mapping[str, float]) -> None:
        """Show the metrics of a logging interval."""
        if not self._main:
            return
        shown = [f"left {self._time_left(step)}"]
        shown += _shown(values)
        for key in values:
            modality, _, name = key.rpartition("/")
            if name == "loss" and modality:
                shown.append(f"{modality}: {' '.join(_shown(values, f'{modality}/'))}")
        if self._bar is None:
            say(f"step {step}/{self._steps}, " + ", ".join(shown))
        else:
            self._bar.n = step
            self._bar.set_postfix_str(", ".join(shown))

    def log(self, message: str) -> None:
        """Print a line, above the bar if there is one."""
        if self._main:
            # the bar makes way, where there is one
            with tqdm.external_write_mode(file=sys.stderr):
                say(message)

    @contextmanager
    def once(self) -> Iterator[None]:
        """What is done inside does not come again: it says nothing of the time that is left."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._began += time.monotonic() - began

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.refresh()
            self._bar.close()

    def _time_left(self, step: int) -> str:
        done = step - self._start_step
        passed = time.monotonic() - self._began
        return duration(passed / done * (self._steps - step) if done > 0 else math.nan)
