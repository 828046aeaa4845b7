"""How a command ends that cannot go on: what it says, once, and its exit code."""

import errno
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from launching import command
from run_folders import write_run

from selfdistill import cli
from selfdistill.cli import main
from selfdistill.errors import DataBudgetError, HealthError, Preempted, SelfdistillError, UserError

WAITING = """
import sys, time
from selfdistill.cli import main
from selfdistill.commands import recipes
def wait(options):
    print("waits", flush=True)
    time.sleep(60)
recipes._run = wait
sys.exit(main(["recipes"]))
"""


def test_ctrl_c_takes_one_line() -> None:
    def interrupt(process: "subprocess.Popen[bytes]") -> None:
        assert process.stdout is not None
        assert process.stdout.readline() == b"waits\n"
        process.send_signal(signal.SIGINT)

    ended = command("-c", WAITING, meanwhile=interrupt)
    assert (ended.code, ended.stderr) == (-signal.SIGINT, "selfdistill: interrupted\n")


@pytest.mark.parametrize("words", [["recipes"], ["watch", "RUN", "--once"]])
def test_output_that_nobody_reads_is_no_error(words: list[str], tmp_path: Path) -> None:
    run = str(write_run(tmp_path / "run"))
    reading, writing = os.pipe()
    os.close(reading)
    words = [run if word == "RUN" else word for word in words]
    ended = subprocess.run(
        [sys.executable, "-m", "selfdistill", *words], stdout=writing, stderr=subprocess.PIPE
    )
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (0, b"")


BROKEN = """
import sys
from selfdistill.cli import main
from selfdistill.commands import recipes
from selfdistill.errors import UserError
def work(options):
    if options.name == "mistake":
        raise UserError("so it is")
    if options.name == "train":
        from selfdistill.engine.metrics import Progress
        progress = Progress(2, 0, main=True)
        progress.log("begun")
        progress.report(1, {"loss": 1.0})
    print("half done", file=sys.stderr, flush=True)
    print("done")
recipes._run = work
sys.exit(main(["recipes", sys.argv[1]]))
"""


@pytest.mark.parametrize(("work", "code"), [("train", 0), ("probe", 1), ("mistake", 2)])
def test_work_that_nobody_watches_is_done_or_has_failed(work: str, code: int) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    ended = subprocess.run([sys.executable, "-c", BROKEN, work], stdout=writing, stderr=writing)
    os.close(writing)
    assert ended.returncode == code


@pytest.mark.parametrize("streams", [">&-", "<&- >&- 2>&-"])
def test_streams_may_be_closed(streams: str) -> None:
    words = f"{shlex.quote(sys.executable)} -m selfdistill recipes image/sample {streams}"
    ended = subprocess.run(words, shell=True, capture_output=True)
    assert (ended.returncode, ended.stderr) == (0, b"")


def test_output_without_room_is_told() -> None:
    with open("/dev/full", "wb") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "selfdistill", "recipes"], stdout=full, stderr=subprocess.PIPE
        )
    told = b"selfdistill: cannot write the output: No space left on device\n"
    assert (ended.returncode, ended.stderr) == (1, told)


@pytest.mark.parametrize(("code", "what"), [(errno.EIO, "read or write"), (errno.EBUSY, "write")])
def test_a_disk_that_fails_is_told(
    code: int,
    what: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    def fails(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    run, page = str(write_run(tmp_path / "run")), str(tmp_path / "page.html")
    monkeypatch.setattr(os, "rename", fails)
    assert main(["report", run, "--out", page]) == 1
    told = f"selfdistill: cannot {what} {page}: {os.strerror(code)}\n"
    assert capsys.readouterr().err == told


def test_a_file_that_may_not_be_so_large_is_told(tmp_path: Path) -> None:
    words = ["report", str(write_run(tmp_path / "run")), "--out", "r.html"]
    ended = subprocess.run(
        [sys.executable, "-m", "selfdistill", *words],
        cwd=tmp_path,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)),
        capture_output=True,
    )
    told = b"selfdistill: cannot write r.html: File too large\n"
    assert (ended.returncode, ended.stderr) == (1, told)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_name_that_is_too_long_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["watch", 300 * "x"]) == 2
    told = "(File name too long|there is no such folder; .*)"  # before Python 3.14, and since
    assert re.fullmatch(f"selfdistill: x{{300}}: {told}\n", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (SelfdistillError, "x.tar is not what it was"),
        (DataBudgetError, "x.tar is not what it was"),
        (UserError, "process 3: x.tar is not what it was"),
        (HealthError, ""),  # all have these
        (Preempted, ""),
    ],
)
def test_a_process_says_what_it_may_have_alone(
    error: type[SelfdistillError],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(cli.time, "sleep", slept.append)
    cli._say(error("x.tar is not what it was"))
    assert capsys.readouterr().err == "selfdistill: x.tar is not what it was\n"
    monkeypatch.setenv("RANK", "3")
    cli._say(error("x.tar is not what it was"))
    assert capsys.readouterr().err == (f"selfdistill: {words}\n" if words else "")
    assert bool(slept) == words.startswith("process")
