import errno
import fcntl
import logging
import multiprocessing
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rough_server import eventually

from selfdistill.data.elsewhere import cache as cache_module
from selfdistill.data.elsewhere.cache import Cache, NoRoom
from selfdistill.errors import SelfdistillError, UserError

# a process that says that it writes, and then waits for an end that it does not see
WRITER = """
import os, sys, time
from pathlib import Path
from selfdistill.data.elsewhere.cache import Cache
def fill(descriptor):
    os.write(descriptor, b"half")
    print("writing", flush=True)
    time.sleep(60)
Cache(Path(sys.argv[1]), 1000).open("0" * 32 + "-a.tar", 8, fill)
"""


def never(descriptor: int) -> None:
    raise AssertionError("it is there already")


def writes(content: bytes) -> Callable[[int], None]:
    def fill(descriptor: int) -> None:
        assert os.write(descriptor, content) == len(content)

    return fill


def full(name: str) -> str:
    """As names in the cache are."""
    return f"{0:032x}-{name}"


def put(cache: Cache, name: str, content: bytes = b"12345678") -> bytes:
    descriptor = cache.open(full(name), len(content), writes(content))
    found = os.read(descriptor, 100)
    os.close(descriptor)
    return found


def get(cache: Cache, name: str, size: int | None = 8) -> bytes:
    descriptor = cache.open(full(name), size, never)
    found = os.read(descriptor, 100)
    os.close(descriptor)
    return found


def names(folder: Path) -> set[str]:
    return {path.name.removeprefix(full("")) for path in folder.iterdir()} - {".lock"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "new" / "cache"


def test_written_once_and_kept(folder: Path) -> None:
    assert put(Cache(folder, 1000), "a.tar") == b"12345678"
    assert get(Cache(folder, 1000), "a.tar") == b"12345678"
    assert names(folder) == {"a.tar"}


def test_only_its_user_may_read_it(folder: Path) -> None:
    old = os.umask(0)
    try:
        cache = Cache(folder, 1000)
        descriptor = cache.open(full("a.tar"), None, lambda d: modes.append(os.fstat(d).st_mode))
        cache.keep_note(full("a.tar"), b"note")
    finally:
        os.umask(old)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert [stat.S_IMODE(p.stat().st_mode) for p in folder.iterdir()] == [0o600] * 3
    assert [stat.S_IMODE(mode) for mode in modes] == [0o600]
    os.close(descriptor)


modes: list[int] = []


def test_what_was_used_longest_ago_goes_first(folder: Path) -> None:
    cache = Cache(folder, 24)
    for age, name in enumerate(("a", "b", "c")):
        put(cache, name)
        os.utime(folder / full(name), (0, 1000 + age))
    open_still = cache.open(full("b"), 8, never)
    os.utime(folder / full("b"), (0, 1001))
    get(cache, "a")
    put(cache, "d", b"new")
    assert names(folder) == {"a", "c", "d"}
    assert os.read(open_still, 100) == b"12345678"
    os.close(open_still)
    put(cache, "e", b"x" * 20)
    assert names(folder) == {"d", "e"}


def test_notes_stay(folder: Path) -> None:
    cache = Cache(folder, 10)
    cache.keep_note(full("a"), b"x" * 100)
    put(cache, "a")
    put(cache, "b")
    assert cache.note(full("a")) == b"x" * 100
    assert cache.note(full("b")) is None
    assert names(folder) == {"b", "a.note"}


def test_what_cannot_fit_drops_nothing(folder: Path) -> None:
    cache = Cache(folder, 20)
    put(cache, "a")
    with pytest.raises(NoRoom):
        cache.open(full("b"), 21, never)
    with pytest.raises(NoRoom):  # its size shows at the end
        cache.open(full("b"), None, writes(b"x" * 21))
    assert names(folder) == {"a"}
    os.close(cache.open(full("b"), None, writes(b"x" * 20)))
    assert names(folder) == {"b"}


def test_other_files_in_the_folder_are_left_alone(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name in ("thesis.tex", "thesis.part", "0123-a.tar"):
        (folder / name).write_bytes(b"x" * 100)
    cache = Cache(folder, 10)
    put(cache, "a")
    put(cache, "b")
    assert names(folder) == {"b", "thesis.tex", "thesis.part", "0123-a.tar"}


def test_full_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(folder, 1000)
    put(cache, "a")
    os.utime(folder / full("a"), (0, 0))
    put(cache, "b")

    def fail(descriptor: int) -> None:
        os.write(descriptor, b"some")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(NoRoom):
        cache.open(full("c"), 8, fail)
    assert names(folder) == {"a", "b"}
    usage = shutil.disk_usage(folder)
    nearly = cache_module.SPARE + 1  # 7 bytes too few
    monkeypatch.setattr(cache_module.shutil, "disk_usage", lambda _: usage._replace(free=nearly))
    put(cache, "c")
    assert names(folder) == {"b", "c"}
    with pytest.raises(NoRoom):
        cache.open(full("d"), 18, never)
    assert names(folder) == {"b", "c"}


def test_a_failed_download_leaves_nothing(folder: Path) -> None:
    cache = Cache(folder, 1000)

    def fail(descriptor: int) -> None:
        os.write(descriptor, b"half")
        raise SelfdistillError("gone")

    with pytest.raises(SelfdistillError, match="gone"):
        cache.open(full("a.tar"), 8, fail)
    assert names(folder) == set()
    assert put(cache, "a.tar") == b"12345678"


def test_a_killed_download_leaves_nothing_that_counts(folder: Path) -> None:
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == "writing\n"
    cache = Cache(folder, 1000)
    assert not cache.has("a.tar")
    assert (folder / full("a.tar.part")).stat().st_size == 8  # others count what it will take
    put(cache, "b.tar")
    assert names(folder) == {"a.tar.part", "b.tar"}  # it is being written
    writer.kill()
    writer.wait()
    writer.stdout.close()
    put(cache, "c.tar")
    assert names(folder) == {"b.tar", "c.tar"}
    (folder / full("a.tar.part")).write_bytes(b"half a")
    assert put(cache, "a.tar") == b"12345678"
    assert names(folder) == {"a.tar", "b.tar", "c.tar"}


def _slowly(folder: Path, log: Path, number: int) -> None:
    def fill(descriptor: int) -> None:
        with log.open("a") as file:
            file.write(f"{number}\n")
        time.sleep(0.3)
        os.write(descriptor, b"12345678")

    descriptor = Cache(folder, 1000).open(full("a.tar"), 8, fill)
    os._exit(0 if os.read(descriptor, 100) == b"12345678" else 1)


def test_several_processes_download_once(folder: Path, tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    processes = [
        fork.Process(target=_slowly, args=(folder, tmp_path / "log", number)) for number in range(4)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(20)
    assert [process.exitcode for process in processes] == [0] * 4
    assert len((tmp_path / "log").read_text().splitlines()) == 1
    assert names(folder) == {"a.tar"}


@pytest.mark.parametrize("patient", [False, True])
def test_who_waits_is_told(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    patient: bool,
) -> None:
    monkeypatch.setattr(cache_module, "WAIT_SAID", 0.1)
    monkeypatch.setattr(cache_module, "POLL", 0.01)
    fork = multiprocessing.get_context("fork")
    other = fork.Process(target=_slowly, args=(folder, tmp_path / "log", 0))
    other.start()
    assert eventually((tmp_path / "log").exists)
    with caplog.at_level(logging.WARNING):
        os.close(Cache(folder, 1000).open(full("a.tar"), 8, never, patient=patient))
    other.join()
    waited = ["still waiting for another process that downloads " + full("a.tar")]
    assert [record.getMessage() for record in caplog.records] == ([] if patient else waited)


@pytest.mark.parametrize("moment", ["while room is made", "while it is written"])
def test_locks_do_not_outlive_their_owner_in_a_child(
    folder: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """A worker forked in the middle of a download has the descriptors too."""
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(20,))
    usage = shutil.disk_usage

    def fork_and_tell(folder: Path) -> object:
        monkeypatch.setattr(cache_module.shutil, "disk_usage", usage)
        child.start()
        return usage(folder)

    def fail(descriptor: int) -> None:
        if moment == "while it is written":
            child.start()
        raise SelfdistillError("gone")

    if moment == "while room is made":
        monkeypatch.setattr(cache_module.shutil, "disk_usage", fork_and_tell)
    cache = Cache(folder, 1000)
    with pytest.raises(SelfdistillError):
        cache.open(full("a.tar"), 8, fail)
    try:
        start = time.monotonic()
        assert put(cache, "a.tar") == b"12345678"
        assert time.monotonic() - start < 5
    finally:
        child.kill()
        child.join()


@pytest.mark.parametrize("finished", [True, False])
def test_a_lock_on_what_another_process_has_just_finished_or_given_up(
    folder: Path, monkeypatch: pytest.MonkeyPatch, finished: bool
) -> None:
    cache, flock, part = Cache(folder, 1000), fcntl.flock, folder / full("a.tar.part")

    def late(descriptor: int, kind: int) -> None:
        if kind & fcntl.LOCK_NB:
            monkeypatch.setattr(cache_module.fcntl, "flock", flock)
            if finished:
                part.write_bytes(b"12345678")
                part.rename(folder / full("a.tar"))
            else:
                part.unlink()
        flock(descriptor, kind)

    monkeypatch.setattr(cache_module.fcntl, "flock", late)
    assert put(cache, "a.tar") == b"12345678"
    assert names(folder) == {"a.tar"}


def test_a_damaged_copy_is_not_used(folder: Path) -> None:
    cache = Cache(folder, 1000)
    put(cache, "a.tar")
    os.truncate(folder / full("a.tar"), 5)
    assert put(cache, "a.tar") == b"12345678"


def test_links_are_not_followed(folder: Path, tmp_path: Path) -> None:
    cache = Cache(folder, 1000)
    (tmp_path / "victim").write_bytes(b"precious")
    for name in ("a.tar", "b.tar.part", "c.note"):
        (folder / full(name)).symlink_to(tmp_path / "victim")
    for name in ("a.tar", "b.tar"):
        with pytest.raises(UserError, match=f"^data.cache_dir: cannot use '{folder}' "):
            put(cache, name, b"12345678")
    assert (tmp_path / "victim").read_bytes() == b"precious"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of others")
def test_files_of_others_are_not_used(folder: Path) -> None:
    cache = Cache(folder, 1000)
    put(cache, "a.tar")
    os.chown(folder / full("a.tar"), 12345, -1)
    with pytest.raises(UserError, match=r"data.cache_dir: .*'0*-a.tar' in it belongs to somebody"):
        get(cache, "a.tar")


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"data.cache_dir: cannot use .*/file/x' \(Not a dir"):
        Cache(tmp_path / "file" / "x", 1000)
    cache = Cache(tmp_path / "x", 1000)
    shutil.rmtree(tmp_path / "x")
    with pytest.raises(UserError, match=r"data.cache_dir: cannot use .*No such file"):
        put(cache, "a.tar")
