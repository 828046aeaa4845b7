import io
import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import termios
import time
from math import nan
from pathlib import Path

import pytest
import yaml
from run_folders import STEPS, config, evaluation, result, row, rows, write_run
from small_runs import SmallRuns

from selfdistill.cli import main
from selfdistill.engine.run_dir import RunDir
from selfdistill.health.figures import FIGURES
from selfdistill.reports.frame import frame, sparkline
from selfdistill.reports.life import Holder, holder, life
from selfdistill.reports.watch import Watcher, watch
from selfdistill.run_folder.record import read_record

HERE = socket.gethostname()


def once(run: Path, encoding: str = "utf-8") -> str:
    """What is shown where stdout is no terminal."""
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding=encoding)
    watch(run, every=2.0, once=False, out=out)
    return raw.getvalue().decode(encoding)


def test_a_run_at_a_glance(tmp_path: Path) -> None:
    lines = [*rows()[:10], evaluation(100, 0.42)]
    run = write_run(tmp_path / "run", lines, result())
    saved = run / "checkpoints" / "step-00000100"
    saved.mkdir(parents=True)
    (saved / "manifest.json").write_text("{}")
    long_ago = time.time() - 125
    os.utime(saved / "manifest.json", (long_ago, long_ago))
    os.utime(run / "metrics.jsonl", (long_ago, long_ago))
    text = once(run)
    for expected in (
        f"{run}  image, dense",
        "step 100/200",
        "50 %  10 steps/s  0:00:10 left",
        "HEALTHY",
        "image, evaluated after step 100",
        "letter: linear 42.0 % (untrained 12.0), few-shot 21.0 % (untrained 6.0)",
        "newest checkpoint  step-00000100, 0:02:05 ago",
        "last line          0:02:05 ago",
    ):
        assert expected in text, expected
    loss = next(line for line in text.splitlines() if "Loss" in line)
    assert re.search("  2.5 .*\u2588\u2587.*\u2581$", loss)
    assert re.search(r"Deviation of the targets +0\.9  >= 0\.27", text)
    assert "!" not in text


def test_what_is_out_of_its_band_is_marked_and_explained(tmp_path: Path) -> None:
    lines = rows(lambda step: {"target_std": 0.9 if step < 150 else 0.1})
    text = once(write_run(tmp_path / "run", lines))
    assert "COLLAPSED" in text
    (marked,) = [line for line in text.splitlines() if line.startswith("!")]
    assert marked.startswith("! Deviation of the targets")
    assert FIGURES["target_std"].advice in " ".join(text.split())


def test_a_terminal_without_blocks_has_letters(tmp_path: Path) -> None:
    run = write_run(tmp_path / "caf\u00e9")
    text = once(run, "ascii")
    assert "caf?" in text
    assert re.search(r"Loss +2 .*#\*.*\._", text)


@pytest.mark.parametrize(
    ("values", "width", "expected"),
    [
        ([0, 1, 2, 3, 4, 5, 6, 7], 8, "_.,-=+*#"),
        ([0, 0, 7, 7], 2, "_#"),
        ([3, 3, 3], 8, "___"),
        ([0.375, 0.3748, 0.375], 8, "___"),
        ([-1, -0.985], 8, "_-"),
        ([0, nan, 7], 8, "_ #"),
        ([nan], 8, " "),
        ([], 8, ""),
        ([1, 2], 0, ""),
    ],
)
def test_sparklines(values: list[float], width: int, expected: str) -> None:
    assert sparkline(values, width, "_.,-=+*#") == expected


@pytest.mark.parametrize("width", [5, 20, 40, 60, 80, 200])
def test_lines_fit_into_the_terminal(width: int, tmp_path: Path) -> None:
    lines = [row(step, data_wait=0.5) for step in range(10, 100, 10)] + [evaluation(90, 0.3)]
    view = Watcher(write_run(tmp_path / "run", lines, result())).look(time.time())
    shown = frame(view, width, unicode=False)
    assert max(len(line.text) for line in shown) <= width
    assert any("Wait for data"[: width - 2] in line.text for line in shown)
    if width >= 40:  # what a title begins with, and all of the value
        waits = next(line.text for line in shown if "Teacher's distance" in line.text)
        assert "0.05" in waits
        assert any("10 steps/s" in line.text for line in shown)


def test_of_layers_the_last_is_shown_and_of_parts_the_whole(tmp_path: Path) -> None:
    parts = {"grad_norm_head": 7.0, "teacher_norm_01": 8.0, "teacher_norm_02": 9.0}
    text = once(write_run(tmp_path / "run", [{**parts, **row(10)}]))
    assert re.search("Norm of the gradient +1.5 ", text)
    assert "gradient head" not in text
    assert re.search("Length of the teacher's vectors 02 +9 ", text)
    assert "vectors 01" not in text


def test_names_of_a_run_cannot_command_the_terminal(tmp_path: Path) -> None:
    evil = "x\x1b]0;title\x07\x1b[2J\x9b31m\r"
    settings = config(modality=evil, strategy=evil)
    lines = [row(10, **{evil: 1.0}), {"step": 10, f"eval/{evil}/{evil}": 0.5}]
    run = write_run(tmp_path / "run", lines, {evil: {"tasks": {evil: {}}}}, settings)
    (run / "lock").write_text(f"process 3 on host {evil}\n")
    text = once(run)
    assert "x?]0;title" in text
    assert all(letter.isprintable() or letter == "\n" for letter in text)


def test_a_run_that_goes_on_is_followed(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [row(10)])
    watcher = Watcher(run)

    def seen() -> int:
        return watcher.look(time.time()).record.step

    assert seen() == 10
    with open(run / "metrics.jsonl", "a") as file:
        file.write(json.dumps(row(20))[:25])
    assert seen() == 10
    (run / "metrics.jsonl").write_text(json.dumps(row(10)) + "\n" + json.dumps(row(20)) + "\n")
    assert seen() == 20
    (run / "metrics.jsonl").unlink()
    view = watcher.look(time.time())
    assert (view.record.step, view.verdict.status) == (0, "early")


def test_a_run_that_has_just_started(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with RunDir(run):
        text = once(run)
        assert f"running: process {os.getpid()} on {HERE}" in text
        assert "Nothing was logged yet." in text
        assert "newest checkpoint  none yet" in text
        (run / "config.yaml").write_text(yaml.safe_dump(config()))
        assert "step 0/200" in once(run)
    stopped = f"not running any more (process {os.getpid()} on {HERE}); the same command"
    assert f"{stopped} begins anew" in once(run)
    saved = run / "checkpoints" / "step-00000010"
    saved.mkdir(parents=True)
    (saved / "manifest.json").write_text("{}")
    assert f"{stopped} goes on from the newest checkpoint" in once(run)


def test_a_run_of_an_older_version(tmp_path: Path) -> None:
    lines = [{"step": 10, "loss": 1.0}, {"step": 20, "loss": 2.0}]
    text = once(write_run(tmp_path / "run", lines, {"image": {"knn": {}}}, {"modality": "image"}))
    assert "step 20" in text
    assert "Loss" in text


def test_files_that_are_being_written_end_nothing(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", found=result())
    watcher = Watcher(run)
    (run / "eval.json").write_text('{"image":')
    (run / "config.yaml").write_text("a: [")
    view = watcher.look(time.time())
    assert [("eval.json" in t, "config.yaml" in t) for t in view.troubles] == [
        (False, True),
        (True, False),
    ]
    assert view.record.steps == STEPS
    assert any("! " in line.text and "eval.json" in line.text for line in frame(view, 100, True))


def test_a_run_is_not_touched(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", found=result())
    with RunDir(run):
        pass

    def state() -> dict[str, tuple[int, int, int]]:
        found = [run, *run.rglob("*")]
        stats = {str(path): path.stat() for path in found}
        return {name: (s.st_ino, s.st_mtime_ns, s.st_ctime_ns) for name, s in stats.items()}

    before = state()
    watcher = Watcher(run)
    watcher.look(time.time())
    assert state() == before
    with RunDir(run):
        watcher.look(time.time())
        assert holder(run) == Holder(os.getpid(), HERE, True)


def test_what_holds_a_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    assert holder(run) is None
    (run / "lock").write_text("")
    assert holder(run) is None
    (run / "lock").write_text("process 77 on host elsewhere\n")
    assert holder(run) == Holder(77, "elsewhere", None)
    (run / "lock").write_text(f"process {os.getpid()} on host {HERE}\n")
    assert holder(run) == Holder(os.getpid(), HERE, False)
    assert holder(run, locks=tmp_path / "no") == Holder(os.getpid(), HERE, True)
    found = (run / "lock").stat()
    device = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}"
    locks = tmp_path / "locks"
    for kind, place, expected in (
        ("FLOCK ", f"{device}:{found.st_ino}", True),
        ("FLOCK ", f"{device}:{found.st_ino + 1}", False),
        ("POSIX ", f"{device}:{found.st_ino}", False),
        ("FLOCK ", f"ff:ff:{found.st_ino}", False),
    ):
        locks.write_text(f"1: {kind} ADVISORY  WRITE 0 {place} 0 EOF\n")
        assert holder(run, locks) == Holder(os.getpid(), HERE, expected)
    # the same folder, mounted once more
    locks.write_text(f"1: FLOCK  ADVISORY  WRITE {os.getpid()} ff:ff:{found.st_ino + 1} 0 EOF\n")
    assert holder(run, locks) == Holder(os.getpid(), HERE, True)


@pytest.mark.parametrize(
    ("last", "holds", "age", "expected", "words"),
    [
        (100, True, 30, "running", "running: process 5 on h"),
        (100, True, 70, "silent", "no line for 0:01:10, one is due every 0:00:01"),
        (200, True, 30, "running", "finishing"),
        (200, False, 30, "finished", "finished"),
        (200, None, 30, "finished", "finished"),
        (100, False, 1, "stopped", "not running any more (process 5 on h)"),
        (100, None, 30, "running", "as its log tells (process 5 on h, not to be seen from here)"),
        (100, None, 70, "unknown", "perhaps dead: no line for 0:01:10"),
    ],
)
def test_whether_it_is_alive(
    last: int, holds: bool | None, age: float, expected: str, words: str, tmp_path: Path
) -> None:
    run = write_run(tmp_path / "run", rows()[: last // 10])
    state, text = life(read_record(run), Holder(5, "h", holds), age, [])
    assert state == expected
    assert words in text


def test_slow_runs_are_given_time(tmp_path: Path) -> None:
    lines = [row(step, train_seconds=100.0 * step) for step in (10, 20, 30)]
    record = read_record(write_run(tmp_path / "run", lines))
    assert life(record, None, 4900, [])[0] == "running"
    assert life(record, None, 5100, [])[0] == "unknown"


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    broken = write_run(tmp_path / "broken")
    (broken / "config.yaml").write_text("a: [")
    for words, expected in (
        ([tmp_path / "empty"], "holds no run"),
        ([tmp_path / "nothing"], "there is no such folder"),
        ([broken], "config.yaml is damaged"),
        ([run, "--every", "0"], "--every: 0 is no number of seconds above 0"),
        ([run, "--every", "nan"], "--every: nan is no number of seconds above 0"),
        ([run, "--every", "inf"], "--every: inf is no number of seconds above 0 and up to 86400"),
        ([run, "--every", "1e10"], "--every: 1e+10 is no number of seconds above 0 and up to"),
    ):
        assert main(["watch", *map(str, words)]) == 2
        error = capsys.readouterr().err
        assert expected in error
        assert error.count("\n") == 1


def test_a_real_run(runs: SmallRuns, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", "--once", str(runs.run("image"))]) == 0
    out = capsys.readouterr().out
    assert "step 3/3" in out
    assert "finished" in out
    assert "step-00000003" in out


class Terminal:
    """``selfdistill watch`` on a terminal of 80 by 20."""

    def __init__(self, run: Path, kind: str = "xterm") -> None:
        self.main, side = pty.openpty()
        termios.tcsetwinsize(side, (20, 80))
        environment = {**os.environ, "TERM": kind, "PYTHONIOENCODING": "utf-8"}
        for name in ("COLUMNS", "LINES", "NO_COLOR"):
            environment.pop(name, None)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "selfdistill", "watch", str(run), "--every", "0.1"],
            stdin=side,
            stdout=side,
            stderr=subprocess.PIPE,
            env=environment,
        )
        os.close(side)
        self.seen = ""

    def until(self, text: str, seconds: float = 60.0) -> None:
        end = time.monotonic() + seconds
        while text not in self.seen:
            assert time.monotonic() < end, self.seen
            if select.select([self.main], [], [], 0.1)[0]:
                self.seen += os.read(self.main, 65536).decode(errors="replace")

    def rest(self) -> str:
        self.process.wait(timeout=60)
        try:
            while select.select([self.main], [], [], 0.1)[0]:
                self.seen += os.read(self.main, 65536).decode(errors="replace")
        except OSError:  # the other side is closed
            pass
        return self.seen


def test_a_terminal_without_commands_gets_none(tmp_path: Path) -> None:
    terminal = Terminal(write_run(tmp_path / "run", [row(10)]), "dumb")
    terminal.until("last line")
    assert "\x1b" not in terminal.rest()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 128 + signal.SIGTERM)]
)
def test_a_terminal_is_left_as_it_was(number: int, code: int, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [row(10)])
    terminal = Terminal(run)
    terminal.until("step 10/200")
    assert terminal.seen.startswith("\x1b[?1049h\x1b[?25l\x1b[H")
    with open(run / "metrics.jsonl", "a") as file:
        file.write(json.dumps(row(20)) + "\n")
    terminal.until("step 20/200")
    terminal.until("more lines in a taller window")
    screen = terminal.seen.rpartition("\x1b[H")[0].rpartition("\x1b[H")[2]
    assert screen.count("\n") == 19
    terminal.process.send_signal(number)
    seen = terminal.rest()
    assert terminal.process.returncode == code
    assert terminal.process.stderr is not None
    assert terminal.process.stderr.read() == b""
    _, left, after = seen.rpartition("\x1b[?25h\x1b[?1049l")
    assert left
    assert "\x1b[H" not in after
    assert ("step 20/200" in after) == (number == signal.SIGINT)
    assert after.count("\x1b[") % 2 == 0
