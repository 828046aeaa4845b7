"""Lengths that no index tells are measured once and kept."""

import multiprocessing
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rough_server import access, running, shards_on_disk, tar_bytes

from selfdistill.data import shard as shard_module
from selfdistill.data.elsewhere import cache as cache_module
from selfdistill.data.shards import ShardSet, open_shards
from selfdistill.data.sidecar import SUFFIX, read_sidecar, write_sidecar
from selfdistill.errors import BadSample

MEASURED = [1200.0, 1200.0, 0.0, *[1200.0] * 7, 1500.0, 1500.0]


def measure(members: Mapping[str, bytes]) -> float:
    if members["jpg"].startswith(b"jpg2"):
        raise BadSample("no length")
    return len(members["jpg"])


def never(members: Mapping[str, bytes]) -> float:
    raise AssertionError("measured again")


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """Two shards without indexes."""
    return shards_on_disk(tmp_path / "disk", 2, sidecars=False)


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can be written beside shards."""

    def fail(*_: Any) -> None:
        raise PermissionError

    monkeypatch.setattr(shard_module, "write_atomically", fail)


def opened(paths: list[Path], tmp_path: Path) -> ShardSet:
    return ShardSet(paths, ["jpg"], access=access(tmp_path / "cache"))


def beside(path: Path) -> Path:
    return path.with_name(path.name + SUFFIX)


def test_they_are_kept_in_the_index(paths: list[Path], tmp_path: Path) -> None:
    found = opened(paths, tmp_path).lengths(measure)
    assert found.tolist() == MEASURED * 2
    assert opened(paths, tmp_path / "elsewhere").lengths(never).tolist() == found.tolist()
    content = beside(paths[0]).read_bytes()
    write_sidecar(paths[0], lengths=found[:12], digest="")
    assert beside(paths[0]).read_bytes() == content  # as pack would have made it
    assert ShardSet(paths, ["jpg"]).known_lengths().tolist() == found.tolist()


def test_samples_of_other_kinds_have_none(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(tar_bytes([("0.png", b"0"), ("1.jpg", b"12"), ("2.jpg", b"345")]))
    assert opened([path], tmp_path).lengths(measure).tolist() == [2, 3]
    lengths = read_sidecar(beside(path).read_bytes(), ["png", "jpg"]).lengths
    assert np.array_equal(lengths, [np.nan, 2, 3], equal_nan=True)


def test_an_index_without_lengths_gets_them(paths: list[Path], tmp_path: Path) -> None:
    write_sidecar(paths[0], lengths=None, digest="f" * 64)
    assert opened(paths, tmp_path).lengths(measure).tolist() == MEASURED * 2
    sidecar = read_sidecar(beside(paths[0]).read_bytes(), ["jpg"])
    assert sidecar.sha256 == "f" * 64
    assert opened(paths, tmp_path).lengths(never).tolist() == MEASURED * 2


@pytest.mark.parametrize("content", [b"", b"some other file"])
def test_a_file_that_is_no_index_is_left_alone(
    content: bytes, paths: list[Path], tmp_path: Path
) -> None:
    beside(paths[0]).write_bytes(content)
    assert opened(paths, tmp_path).lengths(measure).tolist() == MEASURED * 2
    assert beside(paths[0]).read_bytes() == content
    assert opened(paths, tmp_path).lengths(never).tolist() == MEASURED * 2


def test_an_index_that_tells_some_is_left_alone(paths: list[Path], tmp_path: Path) -> None:
    lengths = np.full(12, 7, np.float32)
    lengths[1] = np.nan
    write_sidecar(paths[0], lengths=lengths, digest="")
    content = beside(paths[0]).read_bytes()
    expected = [7.0, 1200.0, *[7.0] * 10, *MEASURED]
    assert opened(paths, tmp_path).lengths(measure).tolist() == expected
    assert beside(paths[0]).read_bytes() == content
    assert opened(paths, tmp_path).lengths(never).tolist() == expected


@pytest.mark.usefixtures("read_only")
def test_beside_shards_that_cannot_be_written_to(paths: list[Path], tmp_path: Path) -> None:
    assert opened(paths, tmp_path).lengths(measure).tolist() == MEASURED * 2
    assert not beside(paths[0]).exists()
    assert opened(paths, tmp_path).lengths(never).tolist() == MEASURED * 2
    times = os.stat(paths[1])
    os.utime(paths[1], ns=(times.st_atime_ns, times.st_mtime_ns + 1))
    with pytest.raises(AssertionError, match="measured again"):  # it may be another shard
        opened(paths, tmp_path).lengths(never)


@pytest.mark.usefixtures("read_only")
def test_nowhere_to_keep_them(paths: list[Path], tmp_path: Path) -> None:
    (tmp_path / "cache").touch()
    assert opened(paths, tmp_path).lengths(measure).tolist() == MEASURED * 2


def test_the_data_of_the_package_stay_as_they_are(
    paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_module, "SAMPLES", tmp_path / "disk")
    assert opened(paths, tmp_path).lengths(measure).tolist() == MEASURED * 2
    assert [path.name for path in sorted((tmp_path / "disk").iterdir())] == ["s-0.tar", "s-1.tar"]
    assert opened(paths, tmp_path).lengths(never).tolist() == MEASURED * 2


def test_of_shards_elsewhere(paths: list[Path], tmp_path: Path) -> None:
    write_sidecar(paths[1], lengths=None, digest="")
    with running() as server:
        server.serve_folder(tmp_path / "disk")
        url = f"{server.url}/s-{{0..1}}.tar"

        def read(how: Callable[[Mapping[str, bytes]], float], folder: str) -> list[float]:
            found = open_shards([url], ["jpg"], access(tmp_path / folder)).lengths(how)
            return [float(length) for length in found]

        assert read(measure, "one") == MEASURED * 2
        assert read(never, "one") == MEASURED * 2
        with pytest.raises(AssertionError, match="measured again"):
            read(never, "two")
        server.files["/s-1.tar"] = tar_bytes([("0.jpg", b"12345")])
        server.files.pop("/s-1.tar.index")
        assert read(measure, "one") == [*MEASURED, 5.0]


def test_what_is_broken_off_goes_on(paths: list[Path], tmp_path: Path) -> None:
    asked = []

    def tired(members: Mapping[str, bytes]) -> float:
        asked.append(members)
        if len(asked) > 15:
            raise KeyboardInterrupt
        return measure(members)

    with pytest.raises(KeyboardInterrupt):
        opened(paths, tmp_path).lengths(tired)
    asked.clear()
    assert opened(paths, tmp_path).lengths(tired).tolist() == MEASURED * 2
    assert len(asked) == 12


def _measure_in_turn(paths: list[Path], tmp_path: Path, barrier: Any) -> None:
    shards = opened(paths, tmp_path)
    barrier.wait(20)

    def noted(members: Mapping[str, bytes]) -> float:
        with open(tmp_path / "log", "a") as log:
            log.write("x")
        return measure(members)

    os._exit(0 if shards.lengths(noted).tolist() == MEASURED * 2 else 1)


@pytest.mark.parametrize("where", ["beside", "apart"])
def test_one_of_several_processes_measures(
    where: str, paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if where == "apart":
        monkeypatch.setattr(shard_module, "SAMPLES", tmp_path / "disk")
    fork = multiprocessing.get_context("fork")
    barrier = fork.Barrier(3)
    arguments = (paths, tmp_path, barrier)
    processes = [fork.Process(target=_measure_in_turn, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(20)
    assert [process.exitcode for process in processes] == [0] * 3
    assert (tmp_path / "log").read_text() == "x" * 24


def test_who_waits_is_told(
    paths: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(cache_module, "WAIT_SAID", 0.0)
    ready, done = multiprocessing.Event(), multiprocessing.Event()

    def hold() -> None:
        with cache_module.Cache(tmp_path / "cache", 0).turn("lengths", ""):
            ready.set()
            done.wait(0.4)
        os._exit(0)

    holder = multiprocessing.get_context("fork").Process(target=hold)
    holder.start()
    assert ready.wait(20)
    assert opened(paths, tmp_path).lengths(measure).tolist() == MEASURED * 2
    holder.join(20)
    assert caplog.messages == ["another process measures the samples; this one waits for it"]
