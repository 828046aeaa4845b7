import errno
import io
import json
import math
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing import (  # type: ignore[import-untyped]
    event_accumulator,
)
from tensorboard.summary.writer.record_writer import (  # type: ignore[import-untyped]
    RecordWriter,
)

from selfdistill.engine import metrics
from selfdistill.engine.metrics import MetricsWriter, Progress, Throughput, by_modality
from selfdistill.engine.run_dir import RunDir
from selfdistill.errors import SelfdistillError


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDir]:
    with RunDir(tmp_path / "run") as run:
        yield run


def rows(run: RunDir) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.metrics_path.read_text().splitlines()]


def test_one_object_per_interval(run: RunDir) -> None:
    writer = MetricsWriter(run, tensorboard=False)
    writer.write(10, {"loss": 0.5, "samples_per_second": 12.25})
    writer.write(20, {"loss": math.nan, "grad_norm": math.inf})
    writer.close()
    assert rows(run) == [
        {"step": 10, "loss": 0.5, "samples_per_second": 12.25},
        {"step": 20, "loss": None, "grad_norm": None},
    ]
    assert not run.tensorboard.exists()


def test_tensorboard_gets_the_same_scalars(run: RunDir) -> None:
    writer = MetricsWriter(run, tensorboard=True)
    for step in (1, 2):
        writer.write(step, {"loss": step / 2})
    writer.close()
    events = event_accumulator.EventAccumulator(str(run.tensorboard)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 0.5), (2, 1.0)]


def test_a_resumed_run_has_no_line_twice(run: RunDir) -> None:
    writer = MetricsWriter(run, tensorboard=True)
    for step in (1, 2, 3, 4):
        writer.write(step, {"loss": step})
    writer.close()
    with open(run.metrics_path, "a") as file:
        file.write('{"step": 2, "lo')
    resumed = MetricsWriter(run, tensorboard=True)
    resumed.truncate_after(2)
    assert [row["step"] for row in rows(run)] == [1, 2]
    for step in (3, 4):
        resumed.write(step, {"loss": step * 10})
    resumed.close()
    assert [row["loss"] for row in rows(run)] == [1, 2, 30, 40]
    events = event_accumulator.EventAccumulator(str(run.tensorboard)).Reload()
    assert [e.value for e in events.Scalars("loss")] == [1, 2, 30, 40]


def test_what_a_step_has_written(run: RunDir) -> None:
    writer = MetricsWriter(run, tensorboard=False)
    assert writer.written(1) == {}
    writer.write(1, {"loss": 2.0})
    writer.write(2, {"loss": 1.0, "grad_norm": math.inf})
    writer.write(2, {"eval/letter/knn": 0.5})
    found = writer.written(2)
    assert math.isnan(found.pop("grad_norm"))
    assert found == {"step": 2, "loss": 1.0, "eval/letter/knn": 0.5}


def test_tensorboard_has_all_that_was_written_when_the_run_is_killed(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has its line will not be written again, so that it must have its points."""

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    writer = MetricsWriter(run, tensorboard=True)
    for step in (1, 2):
        writer.write(step, {"loss": step})
    monkeypatch.setattr(metrics, "_append", killed)
    with pytest.raises(KeyboardInterrupt):
        writer.write(3, {"loss": 3})
    events = event_accumulator.EventAccumulator(str(run.tensorboard)).Reload()
    assert [e.step for e in events.Scalars("loss")] == [1, 2, 3]
    writer.close()


def test_left_out_steps_are_told_as_long_as_their_batches_are_passed_over(run: RunDir) -> None:
    writer = MetricsWriter(run, tensorboard=False)
    for step in (3, 4, 5, 6):
        writer.write_left_out({"step": step, "data_step": step - 1})
    writer.resume_after(4, passed_over=[2, 3, 4])
    lines = run.left_out_path.read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [3, 4, 5]


@pytest.mark.parametrize("last", ['{"step": 1}', '{"step": 1, "loss"', "", "\x00\x00\n", "[1]\n"])
def test_a_line_cut_short_is_dropped(run: RunDir, last: str) -> None:
    run.metrics_path.write_text('{"step": 1, "loss": 2}\n' + last)
    MetricsWriter(run, tensorboard=False).truncate_after(5)
    assert run.metrics_path.read_text() == '{"step": 1, "loss": 2}\n'


def test_nothing_to_truncate(run: RunDir) -> None:
    MetricsWriter(run, tensorboard=False).truncate_after(5)
    assert not run.metrics_path.exists()


def test_metrics_that_cannot_be_written_end_the_run(run: RunDir) -> None:
    run.metrics_path.mkdir()
    with pytest.raises(SelfdistillError, match=r"cannot write .*metrics\.jsonl"):
        MetricsWriter(run, tensorboard=False).write(1, {"loss": 1.0})


@pytest.mark.parametrize("fault", ["missing", "constructor", "write", "close"])
def test_tensorboard_that_fails_costs_one_warning(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("broken tracker")

    name = "torch.utils.tensorboard"
    if fault == "missing":
        monkeypatch.setitem(sys.modules, name, None)
    else:
        method = {"constructor": "__init__", "write": "add_scalar", "close": "close"}[fault]
        monkeypatch.setattr(f"{name}.SummaryWriter.{method}", fail)
    writer = MetricsWriter(run, tensorboard=True)
    for step in (1, 2, 3):
        writer.write(step, {"loss": 1.0})
    writer.close()
    assert len(rows(run)) == 3
    assert len(caplog.records) == 1
    assert "TensorBoard fails" in caplog.text


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A settable monotonic clock, beside a wall clock that went back an hour."""
    now = [100.0]
    wall = time.time()
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "time", lambda: wall - 36 * now[0])
    return now


def test_throughput_of_an_interval(clock: list[float]) -> None:
    throughput = Throughput()
    throughput.add(30)
    throughput.add(30)
    clock[0] += 4
    assert throughput.take() == 15
    assert throughput.take() == 0
    throughput.add(8)
    clock[0] += 100
    throughput.restart()
    throughput.add(8)
    clock[0] += 2
    assert throughput.take() == 4


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


VALUES = {"loss": 0.25, "samples_per_second": 80.0, "target_std": 0.5, "prediction_std": 0.125}


def test_a_line_per_interval_without_a_terminal(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    progress = Progress(steps=1000, start_step=100, main=True)
    clock[0] += 900
    progress.advance(200)
    progress.report(200, VALUES)
    progress.report(300, {"loss": math.nan})
    progress.log("saved")
    progress.close()
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "step 200/1000, left 2:00:00, loss 0.2500, samples/s 80.0, target std 0.500, "
        "prediction std 0.125",
        "step 300/1000, left 0:52:30, loss nan",
        "saved",
    ]


def test_a_bar_on_a_terminal(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = Terminal()
    monkeypatch.setattr(sys, "stderr", stderr)
    progress = Progress(steps=1000, start_step=0, main=True)
    clock[0] += 0.1
    progress.advance(5)
    assert "5/1000" not in stderr.getvalue()
    clock[0] += 0.9
    progress.advance(10)
    assert "10/1000" in stderr.getvalue()
    progress.report(20, VALUES)
    assert "20/1000, left 0:00:49, loss 0.2500, samples/s 80.0" in stderr.getvalue()
    progress.log("saved a checkpoint")
    assert "saved a checkpoint\n" in stderr.getvalue()
    progress.advance(1000)
    progress.close()
    assert "1000/1000" in stderr.getvalue()


def test_a_terminal_that_is_closed_ends_nothing() -> None:
    """As that of a run in the background, once its user has gone."""
    program = """
import os, pty
reader, writer = pty.openpty()
os.dup2(writer, 2)
from selfdistill.engine.metrics import Progress
progress = Progress(steps=10, start_step=0, main=True)
progress.advance(1)
os.close(writer)
os.close(reader)
progress.report(2, {"loss": 1.0})
progress.log("skipped a")
progress.log("skipped b")
progress.advance(3)
progress.close()
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True)
    assert ended.returncode == 0


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_other_processes_are_silent(
    monkeypatch: pytest.MonkeyPatch, stream: type[io.StringIO]
) -> None:
    stderr = stream()
    monkeypatch.setattr(sys, "stderr", stderr)
    progress = Progress(steps=10, start_step=0, main=False)
    progress.advance(1)
    progress.report(1, VALUES)
    progress.log("hello")
    progress.close()
    assert stderr.getvalue() == ""


def test_time_left_is_unknown_before_the_first_step(capsys: pytest.CaptureFixture[str]) -> None:
    Progress(steps=10, start_step=5, main=True).report(5, {})
    assert capsys.readouterr().err == "step 5/10, left unknown\n"


def test_what_is_done_once_says_nothing_of_the_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An evaluation costs as much each time, but for its baselines, which are probed once."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    progress = Progress(steps=30, start_step=0, main=True)
    now[0] += 10  # ten steps
    with progress.once():
        now[0] += 1000
    now[0] += 5  # what comes again
    progress.report(10, {})
    assert capsys.readouterr().err == "step 10/30, left 0:00:30\n"


def test_metrics_of_several_modalities_are_named() -> None:
    own = {"audio": {"loss": 1.0}, "text": {"loss": 2.0, "rank": 3.0}}
    assert by_modality(own) == {"audio/loss": 1.0, "text/loss": 2.0, "text/rank": 3.0}
    assert by_modality({"audio": {"loss": 1.0}}) == {"loss": 1.0}


def test_the_console_shows_each_modality(capsys: pytest.CaptureFixture[str]) -> None:
    values = {"audio/loss": 1.0, "audio/target_std": 0.5, "text/loss": 2.0, "loss": 3.0, "lr": 9.0}
    Progress(steps=4, start_step=0, main=True).report(4, values)
    assert capsys.readouterr().err.endswith(
        ", loss 3.0000, audio: loss 1.0000 target std 0.500, text: loss 2.0000\n"
    )


def test_nothing_is_written_where_the_folder_was_moved(run: RunDir, tmp_path: Path) -> None:
    writer = MetricsWriter(run, tensorboard=False)
    run.path.rename(tmp_path / "moved")
    for action in (lambda: writer.write(1, {"loss": 1.0}), writer.sync):
        with pytest.raises(SelfdistillError, match="was moved or removed"):
            action()
    assert not run.path.exists()


def test_the_thread_of_tensorboard_fails_silently(
    run: RunDir, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []
    monkeypatch.setattr(threading, "__excepthook__", told.append)
    monkeypatch.setattr(threading, "excepthook", told.append)
    writer = MetricsWriter(run, tensorboard=True)
    writer.write(1, {"loss": 1.0})
    monkeypatch.setattr(RecordWriter, "write", fail)
    for step in range(2, 9):
        writer.write(step, {"loss": 1.0})
    writer.close()
    assert caplog.text.count("TensorBoard fails") == 1
    assert told == []


def fail(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")
