"""Shards elsewhere through the cache, from a web server that may misbehave."""

import errno
import json
import logging
import multiprocessing
import os
import pickle
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rough_server import (
    Fault,
    RoughServer,
    access,
    eventually,
    running,
    shards_on_disk,
    tar_bytes,
)

from selfdistill.config import DataConfig
from selfdistill.data.elsewhere import cache as cache_module
from selfdistill.data.elsewhere import remote as remote_module
from selfdistill.data.elsewhere.retries import add_retry, take_retries
from selfdistill.data.ledger import SkipLedgers
from selfdistill.data.loader import Source, training_batches
from selfdistill.data.shards import ShardSet, open_shards, training_shards
from selfdistill.data.sidecar import write_sidecar
from selfdistill.errors import SelfdistillError, UserError
from selfdistill.types import Batch

Sample = tuple[str, dict[str, bytes]]
SIZE = 51_200


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[RoughServer]:
    """Three shards with indexes beside them."""
    monkeypatch.setattr(remote_module, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(remote_module, "PART", 20_000)
    shards_on_disk(tmp_path / "disk")
    with running() as server:
        server.serve_folder(tmp_path / "disk")
        yield server


@pytest.fixture
def expected(server: RoughServer, tmp_path: Path) -> list[Sample]:
    return everything(ShardSet(sorted((tmp_path / "disk").glob("*.tar")), ["jpg"]))


def open_at(server: RoughServer, folder: Path, count: int = 3, **changes: Any) -> ShardSet:
    last = f"{{0..{count - 1}}}" if count > 1 else "0"
    limits = access(folder / "cache", **changes)
    return open_shards([f"{server.url}/s-{last}.tar"], ["jpg"], limits)


def everything(shards: ShardSet) -> list[Sample]:
    return [shards.read(i) for i in range(len(shards))]


def kept(folder: Path) -> list[str]:
    return sorted(path.name[33:] for path in (folder / "cache").iterdir() if path.suffix == ".tar")


def without_sidecars(server: RoughServer) -> None:
    server.files = {path: data for path, data in server.files.items() if path.endswith(".tar")}


def test_as_from_disk(server: RoughServer, expected: list[Sample], tmp_path: Path) -> None:
    shards = open_at(server, tmp_path)
    assert shards.names == ["s-0.tar", "s-1.tar", "s-2.tar"]
    assert server.bodies() == 0  # the indexes are enough to start
    assert everything(shards) == expected == everything(shards)
    assert server.bodies() == 3
    assert kept(tmp_path) == ["s-0.tar", "s-1.tar", "s-2.tar"]
    assert everything(open_at(server, tmp_path)) == expected
    assert server.bodies() == 3
    assert shards.lengths(lambda members: 1 / 0)[:14].tolist() == [*range(12), 100, 101]


def test_as_from_disk_over_bad_connections(
    server: RoughServer, expected: list[Sample], tmp_path: Path
) -> None:
    def fault(number: int, path: str) -> Fault | None:
        if number == 7:
            return Fault(stall_at=0.3)
        return Fault(drop_at=0.5) if number % 5 == 4 else None

    server.fault = fault
    assert everything(open_at(server, tmp_path, timeout=0.3)) == expected


@pytest.mark.parametrize("chunked", [False, True])
def test_servers_that_give_no_ranges(
    server: RoughServer, expected: list[Sample], tmp_path: Path, chunked: bool
) -> None:
    server.ranges = False
    server.fault = lambda number, path: Fault(chunked=chunked)
    assert everything(open_at(server, tmp_path)) == expected


def test_compressed_shards(server: RoughServer, tmp_path: Path) -> None:
    server.files["/s-0.tar"] = tar_bytes(mode="w:gz")
    del server.files["/s-0.tar.index"]
    found = everything(open_at(server, tmp_path, 1))
    assert found[3] == ("003", {"jpg": b"jpg3" * 300, "cls": b"cls3" * 300})
    size = len(server.files["/s-0.tar"])
    assert everything(open_at(server, tmp_path, 1, cache_bytes=size - 1)) == found


class TestWithoutIndexes:
    def test_they_are_downloaded_once(
        self,
        server: RoughServer,
        expected: list[Sample],
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        without_sidecars(server)
        with caplog.at_level(logging.WARNING):
            assert everything(open_at(server, tmp_path)) == expected
        (record,) = caplog.records
        assert "has no index beside it, so all of it is downloaded" in record.getMessage()
        assert "shards that `selfdistill pack` makes have one" in record.getMessage()
        assert server.bodies() == 3
        for path in (tmp_path / "cache").glob("*.tar"):
            path.unlink()
        again = open_at(server, tmp_path)
        assert server.bodies() == 3  # what is in them was kept
        assert everything(again) == expected
        assert server.bodies() == 6

    def test_a_changed_shard_is_indexed_anew(self, server: RoughServer, tmp_path: Path) -> None:
        without_sidecars(server)
        open_at(server, tmp_path, 1)
        server.files["/s-0.tar"] = tar_bytes([("new.jpg", b"new")]).ljust(SIZE, b"\0")
        assert everything(open_at(server, tmp_path, 1)) == [("new", {"jpg": b"new"})]

    def test_bad_indexes_are_not_used(
        self,
        server: RoughServer,
        expected: list[Sample],
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        server.files["/s-0.tar.index"] = b"<html>No such page</html>"
        server.files["/s-1.tar.index"] = server.files["/s-1.tar.index"].replace(b"51200", b"51712")
        with caplog.at_level(logging.WARNING):
            assert everything(open_at(server, tmp_path)) == expected
        assert "2 indexes beside the shards cannot be used" in caplog.text
        assert "it is that of 51,712 bytes, the shard has 51,200" in caplog.text

    def test_more_than_the_cache_holds(
        self, server: RoughServer, expected: list[Sample], tmp_path: Path
    ) -> None:
        without_sidecars(server)
        shards = open_at(server, tmp_path, cache_bytes=SIZE - 1)
        assert len(server.asked("s-0.tar")) < 8  # not one for each of the 24 headers
        assert everything(shards) == expected
        assert kept(tmp_path) == []


class TestErrors:
    @pytest.mark.parametrize(
        ("status", "words"), [(404, "no such file"), (403, "does not allow it")]
    )
    def test_final_answers(
        self, server: RoughServer, tmp_path: Path, status: int, words: str
    ) -> None:
        server.fault = lambda number, path: Fault(status=status) if path == "/s-1.tar" else None
        with pytest.raises(UserError, match=f"data.train: cannot read '.*/s-1.tar': .*{words}"):
            open_at(server, tmp_path)

    def test_no_tar(self, server: RoughServer, tmp_path: Path) -> None:
        without_sidecars(server)
        server.files["/s-0.tar"] = b"<html>" * 1000
        with pytest.raises(UserError, match=r"data.train: shard '.*/s-0.tar' is not a tar file"):
            open_at(server, tmp_path)

    def test_bad_shards_may_be_left_out(
        self, server: RoughServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        without_sidecars(server)
        server.files |= {"/s-0.tar": b"<html>" * 1000, "/s-2.tar": b""}
        config = DataConfig(
            train=[f"{server.url}/s-{{0..2}}.tar"],
            skip_bad_shards=True,
            cache_dir=str(tmp_path / "cache"),
        )
        shards = training_shards(config, ["jpg"])
        assert [name for name, _ in shards.left_out] == [f"{server.url}/s-{n}.tar" for n in (0, 2)]
        assert "2 of 3 shards cannot be used and are left out: '" in caplog.text
        disk = ShardSet([tmp_path / "disk" / "s-1.tar"], ["jpg"])
        assert everything(shards) == everything(disk)
        server.fault = lambda number, path: Fault(status=404) if path == "/s-0.tar" else None
        with pytest.raises(UserError, match="no such file"):  # it may be there again tomorrow
            training_shards(config, ["jpg"])

    def test_an_outage_during_the_run(self, server: RoughServer, tmp_path: Path) -> None:
        shards = open_at(server, tmp_path)
        server.fault = lambda number, path: Fault(status=500)
        with pytest.raises(SelfdistillError, match=r"cannot read '.*/s-0.tar': 5 attempts failed"):
            shards.read(0)
        server.fault = lambda number, path: None
        assert shards.read(0)[0] == "0-000"
        assert kept(tmp_path) == ["s-0.tar"]

    @pytest.mark.parametrize("sidecars", [True, False])
    @pytest.mark.parametrize("bound", [10**9, 0])
    def test_a_shard_that_changes_between_two_reads(
        self, server: RoughServer, tmp_path: Path, bound: int, sidecars: bool
    ) -> None:
        if not sidecars:
            without_sidecars(server)
        shards = open_at(server, tmp_path, cache_bytes=bound)
        first = shards.read(0)
        for path in (tmp_path / "cache").glob("*.tar"):
            path.unlink()
        changed = server.files["/s-0.tar"][:-1] + b"\1"
        server.files["/s-0.tar"] = changed
        if bound:
            assert shards.read(0) == first  # the copy that it has open
        words = r"data.train: shard '.*/s-0.tar' is not what it was when the run started"
        with pytest.raises(SelfdistillError, match=words):
            pickle.loads(pickle.dumps(shards)).read(0)

    def test_a_checksum_that_does_not_fit(self, server: RoughServer, tmp_path: Path) -> None:
        server.tags = False
        shards = open_at(server, tmp_path)
        server.files["/s-0.tar"] = server.files["/s-0.tar"][:-1] + b"\1"
        with pytest.raises(SelfdistillError, match="is not what it was when the run started"):
            shards.read(0)
        assert kept(tmp_path) == []

    @pytest.mark.parametrize("moment", ["before", "meanwhile"])
    def test_a_change_around_a_download(
        self, server: RoughServer, tmp_path: Path, moment: str
    ) -> None:
        server.ranges = False
        unsigned = write_sidecar(tmp_path / "disk/s-0.tar", lengths=None, digest="")
        server.files["/s-0.tar.index"] = unsigned.read_bytes()
        shards = open_at(server, tmp_path)
        content, asked = server.files["/s-0.tar"], len(server.requests)

        def replace(number: int, path: str) -> None:
            if len(server.requests) - asked == 2:  # the first looks at the state of the file
                server.files["/s-0.tar"] = content[::-1]

        if moment == "before":
            server.files["/s-0.tar"] = content[::-1]
        else:
            server.fault = replace
        with pytest.raises(SelfdistillError, match="is not what it was when the run started"):
            shards.read(0)
        assert len(server.requests) - asked == (1 if moment == "before" else 3)
        assert kept(tmp_path) == []

    def test_a_shorter_body_is_never_used(self, server: RoughServer, tmp_path: Path) -> None:
        shards = open_at(server, tmp_path)
        server.fault = lambda number, path: Fault(drop_at=0.9) if path == "/s-0.tar" else None
        with pytest.raises(SelfdistillError, match=r"bytes came, .* were announced"):
            shards.read(0)
        assert kept(tmp_path) == []


CUTS = [0.0, 0.003, 0.04, 0.5, 0.96]
"""Of a tar: nothing, half a header, a whole member, half of them, all without the end mark."""


class TestUnannouncedSizes:
    """Of these the end of a connection is all that tells the end."""

    @pytest.fixture(autouse=True)
    def unannounced(self, server: RoughServer) -> None:
        server.ranges = False
        server.fault = lambda number, path: Fault(unannounced=True)

    def breaking(self, server: RoughServer, share: float, times: int) -> None:
        """Close the connection early whenever the body of a shard is first asked for."""

        def fault(number: int, path: str) -> Fault:
            is_broken = path.endswith(".tar") and 0 < server.asked(path).count("") <= times
            return Fault(unannounced=True, drop_at=share if is_broken else None)

        server.fault = fault

    @pytest.mark.parametrize("sidecars", [True, False])
    def test_as_from_disk(
        self, server: RoughServer, expected: list[Sample], tmp_path: Path, sidecars: bool
    ) -> None:
        if not sidecars:
            without_sidecars(server)
        assert everything(open_at(server, tmp_path)) == expected
        assert server.bodies() == 3

    @pytest.mark.parametrize("sidecars", [True, False])
    @pytest.mark.parametrize("share", CUTS)
    def test_a_connection_that_closes_early_is_tried_again(
        self,
        server: RoughServer,
        expected: list[Sample],
        tmp_path: Path,
        share: float,
        sidecars: bool,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        if not sidecars:
            without_sidecars(server)
        self.breaking(server, share, 2)
        shards = open_at(server, tmp_path)
        assert (everything(shards), shards.faults) == (expected, [])
        assert caplog.text.count("attempt 2 of 5") == caplog.text.count("attempt 3 of 5") == 3
        assert everything(open_at(server, tmp_path)) == expected
        assert server.asked("s-0.tar").count("") == 3

    @pytest.mark.parametrize("share", CUTS)
    def test_nothing_is_kept_of_one_that_stays_short(
        self, server: RoughServer, expected: list[Sample], tmp_path: Path, share: float
    ) -> None:
        without_sidecars(server)
        whole = server.files["/s-1.tar"]
        server.files["/s-1.tar"] = whole[: int(len(whole) * share)]
        words = (
            rf"data.train: cannot read '.*/s-1.tar': 5 attempts failed, .*: {int(SIZE * share):,} "
            "bytes came, how many there are was not announced, and they are not all .* make it ag"
        )
        for asked in (5, 10):
            with pytest.raises(SelfdistillError, match=words):
                open_at(server, tmp_path)
            assert server.asked("s-1.tar").count("") == asked
            assert kept(tmp_path) == ["s-0.tar"]
            assert len(list((tmp_path / "cache").glob("*.note"))) == 1
        server.files["/s-1.tar"] = whole
        assert everything(open_at(server, tmp_path)) == expected

    @pytest.mark.parametrize("share", [0.0, 0.01, 0.5])
    def test_a_compressed_one_that_closes_early_is_tried_again(
        self, server: RoughServer, tmp_path: Path, share: float
    ) -> None:
        server.files = {"/s-0.tar": tar_bytes(mode="w:gz")}
        whole = everything(open_at(server, tmp_path / "whole", 1))
        self.breaking(server, share, 4)
        assert everything(open_at(server, tmp_path, 1)) == whole

    def test_commands_whose_output_ends_early(self, server: RoughServer, tmp_path: Path) -> None:
        limits = access(tmp_path / "cache", allow_pipe=True)
        command = f"pipe:cat {tmp_path}/disk/s-0.tar | head -c 20000"
        with pytest.raises(SelfdistillError, match=r"5 attempts .* 20,000 bytes came, .*cut off"):
            open_shards([command], ["jpg"], limits)
        assert kept(tmp_path) == []

    def test_what_is_no_tar_is_not_asked_for_again(
        self, server: RoughServer, tmp_path: Path
    ) -> None:
        server.files = {"/s-0.tar": b"<html>" * 1000}
        with pytest.raises(UserError, match=r"s-0.tar' is not a tar file"):
            open_at(server, tmp_path, 1)
        assert server.asked("s-0.tar").count("") == 1


class TestRoom:
    def test_the_bound_is_kept(
        self, server: RoughServer, expected: list[Sample], tmp_path: Path
    ) -> None:
        shards = open_at(server, tmp_path, cache_bytes=2 * SIZE)
        for _ in range(2):
            for i in (0, 12, 24, 35, 23, 11):
                assert shards.read(i) == expected[i]
                time.sleep(0.01)  # the clock of the files is coarse
                files = [path for path in (tmp_path / "cache").iterdir() if path.suffix == ".tar"]
                assert sum(path.stat().st_size for path in files) <= 2 * SIZE
        assert kept(tmp_path) == ["s-0.tar", "s-1.tar"]

    def test_few_copies_stay_open(self, server: RoughServer, tmp_path: Path) -> None:
        shards = open_at(server, tmp_path)
        everything(shards)
        links = [os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.exists()]
        assert sum(str(tmp_path / "cache") in link for link in links) == 2

    def test_larger_than_the_bound(
        self,
        server: RoughServer,
        expected: list[Sample],
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        with caplog.at_level(logging.WARNING):
            shards = open_at(server, tmp_path, cache_bytes=SIZE - 1)
            assert len(caplog.records) == 1
            assert everything(pickle.loads(pickle.dumps(shards))) == expected
        (record,) = caplog.records
        assert "has no room in" in record.getMessage()
        assert "read sample by sample over the network" in record.getMessage()
        assert kept(tmp_path) == []
        spans = [part for part in server.asked("s-1.tar") if part != "bytes=0-0"]
        assert len(spans) == 12 + 1  # one for each sample, and a look whether it is compressed

    @pytest.mark.parametrize("when", ["before", "meanwhile"])
    def test_a_full_disk(
        self,
        server: RoughServer,
        expected: list[Sample],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
        when: str,
    ) -> None:
        shards = open_at(server, tmp_path)
        write = os.pwrite

        def full(descriptor: int, data: bytes, offset: int) -> int:
            if offset:
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(descriptor, data, offset)

        if when == "meanwhile":
            monkeypatch.setattr(os, "pwrite", full)
        else:
            monkeypatch.setattr(cache_module, "SPARE", 1 << 60)
        with caplog.at_level(logging.WARNING):
            assert everything(shards) == expected
        assert len(caplog.records) == 1
        assert kept(tmp_path) == []
        assert not list((tmp_path / "cache").glob("*.part"))

    def test_no_room_and_no_ranges(self, server: RoughServer, tmp_path: Path) -> None:
        server.ranges = False
        shards = open_at(server, tmp_path, cache_bytes=SIZE - 1)
        words = "data.train: shard '.*/s-0.tar' has no room in .* raise data.cache_gb, or free"
        with pytest.raises(SelfdistillError, match=words):
            shards.read(0)


def _read(shards: ShardSet, expected: Sequence[Sample]) -> None:
    os._exit(0 if everything(shards) == expected else 1)


class TestProcesses:
    def test_forked_ones_download_once(
        self, server: RoughServer, expected: list[Sample], tmp_path: Path
    ) -> None:
        shards = open_at(server, tmp_path)
        fork = multiprocessing.get_context("fork")
        processes = [fork.Process(target=_read, args=(shards, expected)) for _ in range(3)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(20)
        assert [process.exitcode for process in processes] == [0] * 3
        assert server.bodies() == 3

    def test_it_can_be_pickled(
        self, server: RoughServer, expected: list[Sample], tmp_path: Path
    ) -> None:
        shards = open_at(server, tmp_path)
        shards.read(0)
        shards.prefetch(20)
        assert everything(pickle.loads(pickle.dumps(shards))) == expected


class Names:
    """A batch is the samples' keys."""

    def decode(self, sample: Mapping[str, bytes]) -> bytes:
        return sample["jpg"]

    def augment(self, raw: bytes, rng: np.random.Generator) -> np.ndarray:
        return np.frombuffer(raw, np.uint8)

    def collate(
        self, examples: Sequence[np.ndarray], mask_keys: Any, keys: Sequence[str] = ()
    ) -> Batch:
        return Batch(torch.tensor([len(example) for example in examples]), keys=keys)


def each_fails_once(server: RoughServer) -> None:
    failed: dict[str, int] = {}

    def fault(number: int, path: str) -> Fault | None:
        return Fault(status=500) if failed.setdefault(path, number) == number else None

    server.fault = fault


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_connections_are_counted(server: RoughServer, tmp_path: Path, workers: int) -> None:
    take_retries()
    each_fails_once(server)
    shards = open_at(server, tmp_path)  # three shards and three indexes
    each_fails_once(server)
    ledgers = SkipLedgers(0.05, ["some"])
    batches = training_batches(
        {"some": Source(shards, Names(), 4)},  # type: ignore[arg-type]
        seed=3,
        accumulate=1,
        rank=0,
        world_size=1,
        start_step=0,
        steps=18,
        workers=workers,
    )
    lines = [line for step in batches for part in step for line in ledgers.add(part)]
    assert (ledgers.retries(), ledgers.total(), lines) == (9, 0, [])
    again = SkipLedgers(0.05, ["some"])
    again.load_state(json.loads(json.dumps(ledgers.state())))
    assert again.retries() == 9


def test_forked_processes_count_their_own(server: RoughServer) -> None:
    add_retry()
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(take_retries) == 0
    assert take_retries() >= 1
    assert take_retries() == 0


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("bound", [10**9, 2 * SIZE, 0])
def test_training_sees_what_it_would_see_from_disk(
    server: RoughServer, tmp_path: Path, bound: int
) -> None:
    server.fault = lambda number, path: Fault(drop_at=0.5) if number % 5 == 4 else None
    disk = ShardSet(sorted((tmp_path / "disk").glob("*.tar")), ["jpg"])
    remote = open_at(server, tmp_path, cache_bytes=bound)

    def steps(shards: ShardSet, workers: int) -> list[list[str]]:
        batches = training_batches(
            {"image": Source(shards, Names(), 6)},  # type: ignore[arg-type]
            seed=3,
            accumulate=1,
            rank=0,
            world_size=1,
            start_step=0,
            steps=14,  # more than two epochs
            workers=workers,
        )
        return [list(micro_batch["image"].batch.keys) for (micro_batch,) in batches]

    straight = steps(disk, 0)
    assert len({key for step in straight for key in step}) == 36
    assert steps(remote, 2) == straight
    assert steps(remote, 0) == straight


class TestPrefetch:
    def test_the_shard_comes(
        self, server: RoughServer, expected: list[Sample], tmp_path: Path
    ) -> None:
        shards = open_at(server, tmp_path)
        shards.prefetch(12)
        assert eventually(lambda: kept(tmp_path) == ["s-1.tar"])
        asked = len(server.requests)
        assert shards.read(12) == expected[12]
        shards.prefetch(13)
        assert len(server.requests) == asked

    def test_it_works_in_a_forked_process(self, server: RoughServer, tmp_path: Path) -> None:
        shards = open_at(server, tmp_path)
        shards.prefetch(0)
        assert eventually(lambda: kept(tmp_path) == ["s-0.tar"])

        def fetch() -> None:
            shards.prefetch(12)
            os._exit(not eventually(lambda: kept(tmp_path) == ["s-0.tar", "s-1.tar"]))

        process = multiprocessing.get_context("fork").Process(target=fetch)
        process.start()
        process.join(20)
        assert process.exitcode == 0

    def test_it_never_raises(
        self, server: RoughServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        shards = open_at(server, tmp_path)
        server.fault = lambda number, path: Fault(status=404)
        asked = len(server.requests)
        shards.prefetch(0)
        assert eventually(lambda: len(server.requests) > asked)
        shards.prefetch(12)
        assert eventually(lambda: any("s-1" in path for path, *_ in server.requests[asked:]))
        server.fault = lambda number, path: None
        assert shards.read(0)[0] == "0-000"
        assert not caplog.records

    def test_it_returns_at_once(self, server: RoughServer, tmp_path: Path) -> None:
        shards = open_at(server, tmp_path, timeout=2.0)
        server.fault = lambda number, path: Fault(stall_at=0.5)
        start = time.monotonic()
        for i in (0, 12, 24, 1, 13):
            shards.prefetch(i)
        assert time.monotonic() - start < 1.5
        server.fault = lambda number, path: None
        for i in (0, 12, 24):  # what came too early may be asked for again
            assert eventually(
                lambda i=i: shards.prefetch(i) or f"s-{i // 12}.tar" in kept(tmp_path)
            )

    def test_it_leaves_room_for_the_one_that_is_read(
        self, server: RoughServer, expected: list[Sample], tmp_path: Path
    ) -> None:
        shards = open_at(server, tmp_path, cache_bytes=2 * SIZE - 1)
        shards.read(0)
        asked = len(server.requests)
        shards.prefetch(12)
        time.sleep(0.2)
        assert len(server.requests) == asked

    def test_local_shards_need_none(self, tmp_path: Path) -> None:
        ShardSet(shards_on_disk(tmp_path / "disk"), ["jpg"]).prefetch(3)


def test_commands(server: RoughServer, expected: list[Sample], tmp_path: Path) -> None:
    limits = access(tmp_path / "cache", allow_pipe=True)
    pattern = f"pipe:echo x >> {tmp_path}/log; cat {tmp_path}/disk/s-{{0..2}}.tar"
    shards = open_shards([pattern], ["jpg"], limits)
    assert everything(shards) == expected
    assert everything(open_shards([pattern], ["jpg"], limits)) == expected
    assert (tmp_path / "log").read_text() == "x\n" * 3  # what came is kept
    small = access(tmp_path / "cache2", allow_pipe=True, cache_bytes=SIZE - 1)
    with pytest.raises(SelfdistillError, match=r"shard 'pipe:echo ... \(pipe-.*has no room in"):
        open_shards([pattern], ["jpg"], small)


def test_order_of_a_mixed_list(server: RoughServer, expected: list[Sample], tmp_path: Path) -> None:
    patterns = [f"{server.url}/s-2.tar", f"{tmp_path}/disk/s-0.tar", f"{server.url}/s-1.tar"]
    shards = open_shards(patterns, ["jpg"], access(tmp_path / "cache"))
    assert everything(shards) == [*expected[24:], *expected[:12], *expected[12:24]]


def test_nothing_but_the_cache_is_written(
    server: RoughServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    shards = open_at(server, tmp_path)
    everything(shards)
    assert not list((tmp_path / "here").iterdir())
    files = list((tmp_path / "cache").iterdir())
    assert {oct(path.stat().st_mode & 0o777) for path in files} == {"0o600"}
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700
