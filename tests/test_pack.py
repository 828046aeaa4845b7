"""``selfdistill pack``: the same input gives the same bytes, whatever happens in between."""

import errno
import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import forkserver, get_context
from pathlib import Path
from typing import Any

import pytest
from raw_data import (
    content,
    noise,
    packed,
    picture,
    samples,
    skipped,
    write_librispeech,
    write_pictures,
    write_sound,
    write_texts,
)

from selfdistill.cli import main
from selfdistill.config_files.load import load_config
from selfdistill.config_files.recipes import find_config
from selfdistill.data.sidecar import read_sidecar
from selfdistill.errors import Preempted, SelfdistillError, UserError
from selfdistill.modalities.base import load_modality
from selfdistill.packing.tarwriter import TarWriter

SHARDS = 4
OPTIONS: dict[str, dict[str, Any]] = {"audio": {}, "image": {"labels": "folder"}, "text": {}}


@pytest.fixture(autouse=True)
def no_wait_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a power failure would leave is not tested here."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Folders of all modalities, with long recordings and something broken each."""
    folder = tmp_path / "in"
    write_librispeech(folder / "audio", clips=4)
    for i in range(3):
        write_sound(folder / f"audio/long/r\u00e9cit no. {i}.wav", noise(9 + i, seed=i))
    write_pictures(folder / "image", 12)
    write_texts(folder / "text")
    for name in ("audio/broken.wav", "image/ant/broken.jpg", "text/broken.jsonl"):
        (folder / name).write_bytes(b"\xff\xfe nothing")
    return folder


def pack_it(modality: str, source: Path, out: Path, **more: Any) -> dict[str, bytes]:
    packed(modality, source / modality, out, **({"shards": SHARDS} | OPTIONS[modality] | more))
    return content(out)


def shards_of(files: dict[str, bytes]) -> list[str]:
    return sorted(name for name in files if name.endswith(".tar"))


@pytest.fixture(scope="module")
def workers_at_hand() -> None:
    """Or every worker would import all but what the first test needs."""
    packages = [f"selfdistill.modalities.{name}.pack" for name in OPTIONS]
    get_context("forkserver").set_forkserver_preload([*packages, "selfdistill.packing.workers"])
    forkserver.ensure_running()


@pytest.mark.usefixtures("workers_at_hand")
@pytest.mark.parametrize(("modality", "workers"), [("audio", 3), ("image", 1), ("text", 2)])
def test_neither_processes_nor_the_place_change_a_byte(
    modality: str, workers: int, source: Path, tmp_path: Path
) -> None:
    alone = pack_it(modality, source, tmp_path / "alone")
    assert len(shards_of(alone)) == SHARDS
    assert len(skipped(tmp_path / "alone")) == 1
    source = source.rename(tmp_path / "elsewhere")
    for path in source.rglob("*"):
        os.utime(path, (7, 7))
    assert pack_it(modality, source, tmp_path / "together", workers=workers) == alone


def test_the_seed_changes_the_order_only(source: Path, tmp_path: Path) -> None:
    pack_it("audio", source, tmp_path / "a")
    pack_it("audio", source, tmp_path / "b", seed=1)
    a, b = samples(tmp_path / "a"), samples(tmp_path / "b")
    assert a == b
    assert list(a) != list(b)


def wait_for(what: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)


def is_gone(group: int) -> bool:
    with suppress(ProcessLookupError):
        os.killpg(group, 0)
        return False
    return True


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_what_is_killed_goes_on(number: signal.Signals, tmp_path: Path) -> None:
    """In the middle of the shards; the workers end with their parent."""
    for i in range(10):
        write_sound(tmp_path / f"in/{i}.wav", noise(16, seed=i))
    whole, out = tmp_path / "whole", tmp_path / "killed"
    packed("audio", tmp_path / "in", whole, shards=80)
    command = ["pack", "audio", str(tmp_path / "in"), "--out", str(out), "--min-shards=80"]
    command += ["--min-seconds=0", "--max-seconds=2", "--workers=2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "selfdistill", *command],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: len(list(out.glob("*.tar"))) > 2)
    process.send_signal(number)
    said = process.communicate()[1]
    if number == signal.SIGTERM:
        assert process.returncode == 75
        assert said.startswith("selfdistill: interrupted; ")
        assert said.count("\n") == 1
    wait_for(lambda: is_gone(process.pid), 20)
    left = len(list(out.glob("*.tar")))
    assert 2 < left < 80
    assert not (out / "index.json").exists()
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    lines = packed("audio", tmp_path / "in", out, shards=80)
    assert lines[0].startswith(f"{out}/train-000000.tar to train-000079.tar: 80 shards")
    assert content(out) == content(whole)
    assert not list(out.rglob("*.writing"))
    # but for what each worker was at
    made_again = [path for path, time in before.items() if path.stat().st_mtime_ns != time]
    assert len(made_again) <= 2 < len(before)


@pytest.mark.parametrize("modality", ["audio", "image", "text"])
def test_only_what_is_missing_is_written_again(modality: str, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    before = pack_it(modality, source, out)
    times = {name: (out / name).stat().st_mtime_ns for name in shards_of(before)}
    (out / "train-000002.tar").unlink()
    (out / "train-000001.tar").write_bytes(b"half")
    assert pack_it(modality, source, out) == before
    again = {name: (out / name).stat().st_mtime_ns for name in times}
    assert [name for name in times if times[name] != again[name]] == [
        "train-000001.tar",
        "train-000002.tar",
    ]


def test_nothing_is_done_twice(source: Path, tmp_path: Path) -> None:
    lines = packed("audio", source / "audio", tmp_path / "out")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert packed("audio", source / "audio", tmp_path / "out") == lines
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == times


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
@pytest.mark.parametrize("modality", ["audio", "text"])
def test_what_was_broken_off_goes_on(
    error: BaseException,
    modality: str,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = pack_it(modality, source, tmp_path / "whole")
    finish, calls = TarWriter.finish, []

    def fail(self: TarWriter) -> tuple[str, str]:
        calls.append(self)
        if len(calls) == 3:
            raise error
        return finish(self)

    wanted = "no space left for .*make room:" if isinstance(error, OSError) else "interrupted;"
    kind = SelfdistillError if isinstance(error, OSError) else Preempted
    with monkeypatch.context() as patch:
        patch.setattr(TarWriter, "finish", fail)
        with pytest.raises(
            kind, match=rf"{wanted} what is finished stays \(2 shards\); run the same"
        ):
            pack_it(modality, source, tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*.tar"))) == 2
    assert not list((tmp_path / "out").rglob("*.writing"))
    monkeypatch.setattr("selfdistill.pack.survey_lot", lambda *_: pytest.fail("surveyed again"))
    assert pack_it(modality, source, tmp_path / "out") == whole


@pytest.mark.parametrize("step", ["finish", "tidy"])
def test_what_ends_last_can_be_broken_off_too(
    step: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"selfdistill.pack.{step}", interrupt)
        with pytest.raises(Preempted):
            pack_it("text", source, out)
    monkeypatch.setattr("selfdistill.pack.survey_lot", lambda *_: pytest.fail("surveyed again"))
    assert "index.json" in pack_it("text", source, out)
    assert not list((out / ".pack").glob("lot-*"))


def test_a_changed_input_is_named(source: Path, tmp_path: Path) -> None:
    pack_it("image", source, tmp_path / "out")
    before = content(tmp_path / "out")
    picture(77).save(source / "image/ant/ant_0.jpg")
    with pytest.raises(UserError, match=r"with other inputs: 1 changed \(ant/ant_0\.jpg\); delete"):
        pack_it("image", source, tmp_path / "out")
    assert content(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 1}, "seed 0, this is seed 1"),
        ({"shards": 5}, "min-shards 4, this is min-shards 5"),
        ({"max_side": 9}, "max-side 0, this is max-side 9"),
    ],
)
def test_changed_options_are_named(
    changes: dict[str, Any], words: str, source: Path, tmp_path: Path
) -> None:
    pack_it("image", source, tmp_path / "out")
    with pytest.raises(UserError, match=f"was begun with {words}"):
        pack_it("image", source, tmp_path / "out", **changes)


def test_nothing_that_can_be_packed(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(UserError, match=r"nothing to pack \(found: no file\); give folders of"):
        packed("image", tmp_path / "in", tmp_path / "out")
    for i in range(3):
        (tmp_path / f"in/{i}.txt").write_text("x")
    with pytest.raises(UserError, match=r"nothing to pack \(found: 3 \.txt\)"):
        packed("image", tmp_path / "in", tmp_path / "out")
    for i in range(3):
        (tmp_path / f"in/{i}.jpg").write_text("x")
    with pytest.raises(UserError, match=r"can be packed: 3 x undecodable image \(such as 0\.jpg: "):
        packed("image", tmp_path / "in", tmp_path / "out")
    for i in range(3):
        (tmp_path / f"in/{i}.wav").write_text("x")
    with pytest.raises(UserError, match=r"can be packed: 3 x undecodable audio"):
        packed("audio", tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_shard_without_a_good_sample_is_left_out(tmp_path: Path) -> None:
    write_pictures(tmp_path / "in", 2, classes=("ant",))
    for i in range(3):
        (tmp_path / f"in/bad{i}.jpg").write_text("x")
    packed("image", tmp_path / "in", tmp_path / "out", shards=5)
    files = content(tmp_path / "out")
    assert len(shards_of(files)) == 2
    listed = [shard["url"] for shard in json.loads(files["index.json"])["shardlist"]]
    assert listed == shards_of(files)
    assert packed("image", tmp_path / "in", tmp_path / "out", shards=5)
    assert content(tmp_path / "out") == files


def test_the_index_has_the_sums_of_every_shard(source: Path, tmp_path: Path) -> None:
    files = pack_it("audio", source, tmp_path / "out")
    index = json.loads(files["index.json"])
    for shard in index["shardlist"]:
        data = files[shard["url"]]
        assert len(data) == shard["filesize"]
        assert hashlib.sha256(data).hexdigest() == shard["sha256"]
        assert hashlib.md5(data).hexdigest() == shard["md5sum"]
        sidecar = read_sidecar(files[f"{shard['url']}.index"], ["flac", "wav"])
        assert (sidecar.sha256, sidecar.size) == (shard["sha256"], len(data))
        assert len(sidecar.index) == shard["nsamples"]
        assert sidecar.lengths is not None
        assert sum(sidecar.lengths) == pytest.approx(shard["length"], abs=1e-2)
    total = 3 * (0.3 + 0.35 + 0.4 + 0.45) + 9 + 10 + 11
    assert index["length"] == pytest.approx(total, abs=0.01)
    assert index["samples"] == sum(shard["nsamples"] for shard in index["shardlist"])


def test_lost_work_is_no_bad_sample(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was cut and cannot be read again must not be left out in silence."""
    monkeypatch.setattr("selfdistill.packing.declaration.Job.spill", lambda job, lot: Path("/no"))
    monkeypatch.setattr("selfdistill.packing.surveys.write_synced", lambda path, data: None)
    with pytest.raises((FileNotFoundError, UserError)):
        pack_it("text", source, tmp_path / "out")


def test_the_command(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "my out"
    words = ["image", str(source / "image"), "--out", str(out), "--workers=1", "--name=test"]
    assert main(["pack", *words, "--labels", "folder", "--shard-size", "0.01"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{out}/test-000000.tar to test-00000")
    assert lines[-1] == (
        f"  selfdistill pretrain image/base_visible 'run_dir=runs/my out' 'data.train=[{out}]'"
    )
    assert main(["pack", *words, "--labels", "folder"]) == 2
    assert "was begun with shard-size 0.01, this is shard-size 500.0" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["of 2024", "a #1", "set: train", 'say "x"'])
def test_the_next_command_has_the_folder_s_name(name: str, source: Path, tmp_path: Path) -> None:
    command = packed("image", source / "image", tmp_path / name)[-1]
    recipe, *changes = shlex.split(command)[2:]
    config = load_config(find_config(recipe), changes, load_modality)
    assert config.run_dir == f"runs/{name}"
    assert config.data.train == [str(tmp_path / name)]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["video", "x", "--out", "y"], "there is no 'video'; choose one of audio, image, "),
        (["image", "none", "--out", "y"], "SOURCE: there is no 'none'; check the path"),
        (["image", "--out", "y"], "the following arguments are required: SOURCE"),
        (["image", ".", "--out", "y", "--seed=-1"], "-1 must not be negative"),
        (["image", ".", "--out", "y", "--name=a/b"], "'a/b' must have 1 to 50 characters, no /"),
        (["image", ".", "--out", "y", "--name=.a"], "'.a' must have 1 to 50 characters, no /"),
        (
            ["image", ".", "--out", "y", "--shard-size=1e-7"],
            "1e-7 must be between 0.001 and 1000000",
        ),
        (["image", ".", "--out", "y", "--shard-size=2e9"], "2e9 must be between 0.001 and 1000000"),
        (["image", ".", "--out", "y", "--workers=0"], "0 must be 1 or more"),
        (["text", ".", "--out", "y", "--model=word"], "invalid choice: 'word'"),
    ],
)
def test_commands_that_cannot_be(
    words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code: object = main(["pack", *words])
    except SystemExit as error:
        code = error.code
    assert code == 2
    assert expected in capsys.readouterr().err


def test_every_option_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for modality, option in (("audio", "--max-seconds"), ("text", "--no-join")):
        with pytest.raises(SystemExit):
            main(["pack", modality, "--help"])
        shown = capsys.readouterr().out
        assert option in shown
        assert "--shard-size MB" in shown
