import bz2
import errno
import gzip
import io
import logging
import lzma
import os
import pickle
import shutil
import subprocess
import tarfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn, cast

import numpy as np
import pytest
from rough_server import MEMBERS, shards_on_disk
from webdataset import TarWriter

from selfdistill.config import DataConfig
from selfdistill.data import headers, sources
from selfdistill.data import shards as shards_module
from selfdistill.data.elsewhere.address import Access
from selfdistill.data.loader import Source
from selfdistill.data.pipeline import InputPipeline
from selfdistill.data.shards import ShardSet, open_shards, training_shards
from selfdistill.data.sidecar import write_sidecar
from selfdistill.data.tarindex import Contents
from selfdistill.errors import BadSample, SelfdistillError, UserError

Member = tuple[str, bytes]
NO_PIPELINE = cast(InputPipeline, None)
THREE = [(f"{i}.{e}", f"{e}{i}".encode() * 400) for i in range(3) for e in ("jpg", "cls")]


def write(path: Path, members: Sequence[Member | tarfile.TarInfo], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1]))
    return path


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def forbidden(*_: object) -> NoReturn:
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def everything(shards: ShardSet) -> list[tuple[str, dict[str, bytes]]]:
    return [shards.read(i) for i in range(len(shards))]


THREE_READ = [
    (str(i), {"jpg": f"jpg{i}".encode() * 400, "cls": f"cls{i}".encode() * 400}) for i in range(3)
]


class TestReading:
    def test_shards_in_order(self, tmp_path: Path) -> None:
        paths = [write(tmp_path / "a.tar", THREE), write(tmp_path / "b.tar", THREE[2:4])]
        shards = ShardSet(paths, ["jpg"])
        assert (shards.names, shards.sizes, len(shards)) == (["a.tar", "b.tar"], [3, 1], 4)
        assert shards.keys == ["0", "1", "2", "1"]
        assert everything(shards) == [*THREE_READ, THREE_READ[1]]
        assert (shards.faults, shards.skipped) == ([], 0)
        for outside in (-1, 4):
            with pytest.raises(IndexError):
                shards.read(outside)

    def test_gzip_equals_plain(self, tmp_path: Path) -> None:
        plain = write(tmp_path / "a.tar", THREE)
        misnamed = tmp_path / "c.tar"
        misnamed.write_bytes(gzip.compress(plain.read_bytes()))
        halves = tmp_path / "d.tar.gz"  # as parallel compressors write it
        halves.write_bytes(
            gzip.compress(plain.read_bytes()[:999]) + gzip.compress(plain.read_bytes()[999:])
        )
        for path in (write(tmp_path / "b.tar.gz", THREE, "w:gz"), misnamed, halves):
            shards = ShardSet([path], ["jpg"])
            assert everything(shards) == THREE_READ
            assert shards.faults == []

    def test_tar_program_and_webdataset_writer(self, tmp_path: Path) -> None:
        for name, data in THREE:
            (tmp_path / name).write_bytes(data)
        names = [name for name, _ in THREE]
        subprocess.run(["tar", "cf", "program.tar", *names], cwd=tmp_path, check=True)
        with TarWriter(str(tmp_path / "writer.tar"), encoder=False) as writer:
            for key, members in THREE_READ:
                writer.write({"__key__": key, **members})
        for name in ("program.tar", "writer.tar"):
            shards = ShardSet([tmp_path / name], ["jpg"])
            assert sorted(everything(shards)) == THREE_READ
            assert shards.faults == []

    def test_long_and_foreign_names(self, tmp_path: Path) -> None:
        key = "d\u00e9j\u00e0/" + "x" * 300
        for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
            path = tmp_path / f"{form}.tar"
            with tarfile.open(path, "w", format=form) as archive:
                archive.addfile(tarfile.TarInfo(f"{key}.jpg"))
            assert everything(ShardSet([path], ["jpg"])) == [(key, {"jpg": b""})]

    def test_only_wanted_members(self, tmp_path: Path) -> None:
        members = [("a.jpg", b"1"), ("a.json", b"2"), ("a.PNG", b"3"), ("b.json", b"4")]
        members += [("c.cls", b"5"), ("README", b"6"), ("._a.jpg", b"7")]
        shards = ShardSet([write(tmp_path / "a.tar", members)], ["png", "jpg"])
        assert everything(shards) == [("a", {"jpg": b"1", "png": b"3"})]
        assert shards.skipped == 2
        skipped = "hidden files and those without an extension are skipped"
        assert shards.faults == [("a.tar", f"{skipped} (2 members, first 'README')")]

    def test_interleaved_members_are_grouped(self, tmp_path: Path) -> None:
        members = [*THREE[::2], *THREE[1::2]]
        shards = ShardSet([write(tmp_path / "a.tar", members)], ["jpg"])
        assert everything(shards) == THREE_READ

    def test_travels_to_another_process(self, tmp_path: Path) -> None:
        paths = [write(tmp_path / "a.tar", THREE), write(tmp_path / "b.tar.gz", THREE, "w:gz")]
        shards = ShardSet(paths, ["jpg"])
        everything(shards)
        pickled = pickle.dumps(shards)
        assert len(pickled) < 3000  # the index, not the data
        assert everything(pickle.loads(pickled)) == 2 * THREE_READ

    def test_decompressed_once_while_it_fits(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        paths = [write(tmp_path / f"{i}.tar.gz", THREE, "w:gz") for i in range(3)]
        inflated = 0
        inflate = sources.inflate

        def counted(chunks: Iterable[bytes]) -> tuple[bytearray, str]:
            nonlocal inflated
            inflated += 1
            return inflate(chunks)

        monkeypatch.setattr(sources, "inflate", counted)
        everything(ShardSet(paths, ["jpg"]))
        assert inflated == 3
        monkeypatch.setattr(shards_module, "CACHE_BYTES", 1)
        assert everything(ShardSet(paths, ["jpg"])) == 3 * THREE_READ
        assert inflated == 9

    def test_many_shards_need_few_open_files(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(shards_module, "MAX_OPEN", 2)
        before = len(os.listdir("/proc/self/fd"))
        paths = [write(tmp_path / f"{i}.tar", THREE) for i in range(5)]
        shards = ShardSet(paths, ["jpg"])
        assert everything(shards) == 5 * THREE_READ
        assert len(os.listdir("/proc/self/fd")) <= before + 2


class TestFaults:
    @pytest.mark.parametrize(
        ("data", "words"),
        [
            (b"", "is not a tar file .empty file"),
            (b"hello" * 1000, "is not a tar file .*invalid header"),
            (
                bz2.compress(b"hello" * 1000),
                r"compressed in another way than gzip's \(bzip2 -d unpacks",
            ),
            (
                lzma.compress(b"hello" * 1000),
                r"compressed in another way than gzip's \(xz -d unpacks",
            ),
            (
                b"\x28\xb5\x2f\xfd" + bytes(999),
                r"compressed in another way than gzip's \(zstd -d unpacks",
            ),
            (gzip.compress(b"hello" * 1000, mtime=0), "is not a tar file"),
            (bytes(10240), "has no sample with a member .jpg, .png .found: no file"),
            (b"\x1f\x8b", "is not a tar file|truncated in the middle of the gzip data"),
        ],
    )
    def test_not_a_shard(self, tmp_path: Path, data: bytes, words: str) -> None:
        path = tmp_path / "bad.tar"
        path.write_bytes(data)
        with pytest.raises(UserError, match=f"^data.train: shard '{path}' .*({words})"):
            ShardSet([write(tmp_path / "good.tar", THREE), path], ["jpg", "png"])

    def test_other_members_only(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.tar", [("a.flac", b"1"), ("a.cls", b"2")])
        with pytest.raises(UserError, match=r"no sample with a member \.jpg \(found: flac\)"):
            ShardSet([path], ["jpg"])

    def test_the_switch_is_named_where_it_works(self, tmp_path: Path) -> None:
        path = tmp_path / "bad.tar"
        path.write_bytes(b"")
        config = DataConfig(train=[str(path)])
        with pytest.raises(UserError, match=r"or set data.skip_bad_shards=true$"):
            training_shards(config, ["jpg"])
        with pytest.raises(UserError, match=r"make it again, or take it out of the list$"):
            open_shards([str(path)], ["jpg"], Access.of(config), "eval.tasks.some.train")

    def test_bad_shards_may_be_left_out(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        contents = {"a": b"", "c": b"hello" * 1000, "e": bytes(10240), "f": b"\x1f\x8b"}
        for name, data in contents.items():
            (tmp_path / f"{name}.tar").write_bytes(data)
        write(tmp_path / "g.tar", [("a.flac", b"1")])
        good = [write(tmp_path / "b.tar", THREE), write(tmp_path / "d.tar", THREE[2:])]
        config = DataConfig(train=[str(tmp_path)], skip_bad_shards=True)
        shards, alone = training_shards(config, ["jpg"]), ShardSet(good, ["jpg"])
        assert (shards.names, shards.sizes) == (alone.names, alone.sizes)
        assert everything(shards) == everything(alone)
        assert [Path(name).name for name, _ in shards.left_out] == [f"{n}.tar" for n in "acefg"]
        assert np.array_equal(shards.lengths(lambda _: 2.0), alone.lengths(lambda _: 2.0))
        (warning,) = [r.getMessage() for r in caplog.records if "left out" in r.getMessage()]
        assert warning.startswith("data.train: 5 of 7 shards cannot be used and are left out: '")
        for name in "acefg":
            assert f"{name}.tar' " in warning
        source, same = (Source(s, NO_PIPELINE, 1) for s in (shards, alone))
        assert source.fingerprint() == same.fingerprint()

    def test_nothing_but_bad_shards(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        for name in "ab":
            (tmp_path / f"{name}.tar").write_bytes(b"")
        config = DataConfig(train=[str(tmp_path)], skip_bad_shards=True)
        with pytest.raises(UserError, match=r"data.train: shard '.*a.tar' is not a tar file"):
            training_shards(config, ["jpg"])
        assert not caplog.records

    def test_shards_that_are_gone_are_never_left_out(self, tmp_path: Path) -> None:
        paths = [write(tmp_path / "a.tar", THREE), tmp_path / "gone.tar"]
        with pytest.raises(UserError, match=r"cannot read shard .*No such file"):
            ShardSet(paths, ["jpg"], skip_bad=True)

    def test_of_many_bad_shards_some_are_named(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        for number in range(23):
            (tmp_path / f"{number}.tar").write_bytes(b"")
        write(tmp_path / "good.tar", THREE)
        training_shards(DataConfig(train=[str(tmp_path)], skip_bad_shards=True), ["jpg"])
        (warning,) = [r.getMessage() for r in caplog.records]
        assert (warning.count(".tar'"), warning[-12:]) == (20, "; and 3 more")

    def test_gone_unreadable_or_nothing(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"data.train: cannot read shard .*No such file"):
            ShardSet([tmp_path / "gone.tar"], ["jpg"])
        with pytest.raises(UserError, match=r"data.train: is empty"):
            ShardSet([], ["jpg"])

    def test_every_cut_keeps_the_samples_before_it(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        whole = write(tmp_path / "whole.tar", THREE).read_bytes()
        end = 6 * (512 + 2048)  # header and data of six members, rounded up to blocks
        path = tmp_path / "cut.tar"
        for cut in range(512 + 1600, len(whole) + 1, 128):
            path.write_bytes(whole[:cut])
            caplog.clear()
            with caplog.at_level(logging.WARNING):
                shards = ShardSet([path], ["jpg"])
            complete = [i for i in range(3) if cut >= 2 * i * 2560 + 512 + 1600]
            assert shards.keys == [str(i) for i in complete], cut
            for i in complete:
                assert shards.read(i)[1]["jpg"] == THREE_READ[i][1]["jpg"]
            assert len(shards.faults) == len(caplog.records) == (cut < end + 512), cut
            if shards.faults:
                assert shards.faults[0][0] == "cut.tar"
                assert "truncated or corrupt" in caplog.text

    def test_cut_gzip(self, tmp_path: Path) -> None:
        members = [(f"{i}.jpg", os.urandom(5000)) for i in range(20)]
        whole = write(tmp_path / "whole.tar.gz", members, "w:gz")
        path = tmp_path / "cut.tar.gz"
        path.write_bytes(whole.read_bytes()[:50_000])
        shards = ShardSet([path], ["jpg"])
        assert 5 < len(shards) < 11
        assert everything(shards) == everything(ShardSet([whole], ["jpg"]))[: len(shards)]
        assert shards.faults == [("cut.tar.gz", "truncated in the middle of the gzip data")]

    @pytest.mark.parametrize("zeros", [1, 512, 3 * sources.CHUNK])
    def test_zeros_behind_gzip_data(self, zeros: int, tmp_path: Path) -> None:
        """As on tapes, and between the files of a cat; gzip -d takes them without a word."""
        data = write(tmp_path / "whole.tar", THREE).read_bytes()
        path = tmp_path / "a.tar.gz"
        halves = (gzip.compress(data[:999]), gzip.compress(data[999:]))
        path.write_bytes(b"".join(half + bytes(zeros) for half in halves))
        shards = ShardSet([path], ["jpg"])
        assert (everything(shards), shards.faults) == (THREE_READ, [])
        path.write_bytes(path.read_bytes() + b"more")
        assert "corrupt gzip data" in ShardSet([path], ["jpg"]).faults[0][1]

    def test_damaged_gzip(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sources, "CHUNK", 4096)
        path = write(
            tmp_path / "a.tar.gz", [(f"{i}.jpg", os.urandom(5000)) for i in range(20)], "w:gz"
        )
        data = bytearray(path.read_bytes())
        expected = everything(ShardSet([path], ["jpg"]))
        data[-6] ^= 1  # in the checksum
        path.write_bytes(data)
        shards = ShardSet([path], ["jpg"])
        assert len(shards) >= 18
        assert everything(shards) == expected[: len(shards)]
        assert "corrupt gzip data" in shards.faults[0][1]

    def test_damaged_header(self, tmp_path: Path) -> None:
        data = bytearray(write(tmp_path / "a.tar", THREE).read_bytes())
        data[4 * 2560 + 3] ^= 1
        (tmp_path / "a.tar").write_bytes(data)
        shards = ShardSet([tmp_path / "a.tar"], ["jpg"])
        assert shards.keys == ["0", "1"]
        assert "corrupt" in shards.faults[0][1]

    def test_hostile_members_are_skipped(self, tmp_path: Path) -> None:
        members: list[Member | tarfile.TarInfo] = [
            ("good.jpg", b"1"),
            ("../../outside.jpg", b"2"),
            ("/absolute.jpg", b"3"),
            ("a/../../b.jpg", b"4"),
            special("link.jpg", tarfile.SYMTYPE, "/etc/passwd"),
            special("hard.jpg", tarfile.LNKTYPE, "good.jpg"),
            special("device.jpg", tarfile.CHRTYPE),
            special("pipe.jpg", tarfile.FIFOTYPE),
            special("folder.jpg", tarfile.DIRTYPE),
            ("folder.d/last.jpg", b"5"),
        ]
        inside = tmp_path / "inside"
        inside.mkdir()
        shards = ShardSet([write(inside / "a.tar", members)], ["jpg"])
        assert everything(shards) == [("good", {"jpg": b"1"}), ("folder.d/last", {"jpg": b"5"})]
        assert [reason for _, reason in shards.faults] == [
            "paths that lead out of the shard are skipped (3 members, first '../../outside.jpg')",
            "links, devices and sparse files are skipped (4 members, first 'link.jpg')",
        ]
        assert [p.name for p in tmp_path.rglob("*")] == ["inside", "a.tar"]

    def test_a_sparse_member_is_skipped_alone(self, tmp_path: Path) -> None:
        for name in ("0.jpg", "2.jpg"):
            (tmp_path / name).write_bytes(name.encode())
        with open(tmp_path / "1.jpg", "wb") as file:
            file.truncate(1 << 20)
        names = [f"{i}.jpg" for i in range(3)]
        for form in ("gnu", "pax"):
            command = ["tar", "--sparse", f"--format={form}", "-cf", "a.tar", *names]
            subprocess.run(command, cwd=tmp_path, check=True)
            assert (tmp_path / "a.tar").stat().st_size < 1 << 20
            shards = ShardSet([tmp_path / "a.tar"], ["jpg"])
            assert everything(shards) == [("0", {"jpg": b"0.jpg"}), ("2", {"jpg": b"2.jpg"})]
            assert len(shards.faults) == 1
            assert "sparse files are skipped (1 members, first '1.jpg')" in shards.faults[0][1]

    def test_what_follows_the_end_is_told(self, tmp_path: Path) -> None:
        data = write(tmp_path / "a.tar", THREE).read_bytes()
        (tmp_path / "a.tar").write_bytes(data + data)
        (tmp_path / "b.tar.gz").write_bytes(gzip.compress(data + data))
        (tmp_path / "padded.tar").write_bytes(data + bytes(1 << 20))
        shards = ShardSet(sorted(tmp_path.glob("*.tar*")), ["jpg"])
        assert shards.sizes == [3, 3, 3]
        words = (
            f"{len(data):,} bytes behind the end-of-archive mark are not read; tar --concatenate"
        )
        assert [(name, fault[: len(words)]) for name, fault in shards.faults] == [
            ("a.tar", words),
            ("b.tar.gz", words),
        ]

    def test_duplicates_are_reported(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.tar", [*THREE, ("0.jpg", b"later"), ("1.JPG", b"later")])
        shards = ShardSet([path], ["jpg"])
        assert everything(shards) == THREE_READ
        assert shards.faults == [
            ("a.tar", "duplicates of an earlier member are skipped (2 members, first '0.jpg')")
        ]

    def test_a_dotted_name_beside_a_sample_is_no_fault(self, tmp_path: Path) -> None:
        members = [(f"{i}.{e}", b"1") for i in range(2) for e in ("jpg", "seg.png", "cls", "json")]
        path = write(tmp_path / "a.tar", members)
        assert ShardSet([path], ["jpg", "png"]).faults == []
        path = write(tmp_path / "a.tar", [*members, ("2.seg.png", b"1")])
        ((_, fault),) = ShardSet([path], ["jpg", "png"]).faults
        assert fault.endswith("(1 members, first '2.seg.png')")

    def test_many_dotted_names_take_no_time(self) -> None:
        """Each is an extension of its own."""
        count = 60_000
        each = np.arange(count, dtype=np.uint32)
        contents = Contents(
            names=np.full(count, ord("a"), np.uint8),
            name_ends=each + 1,
            first=np.arange(count + 1, dtype=np.uint32),
            extension=each,
            block=each + 1,
            size=np.ones(count, np.int32),
            extensions=[f"{number}.jpg" for number in range(count)],
            repeated=[],
            faults=[],
        )
        began = time.process_time()
        (fault,) = contents.select(["jpg"])[0].faults
        assert time.process_time() - began < 3
        assert fault.endswith(f"({count} members, first 'a.0.jpg')")

    def test_dotted_names_are_explained(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.tar", [("a.b.flac", b"1"), ("v1.0/c.flac", b"2")])
        shards = ShardSet([path], ["flac"])
        assert everything(shards) == [("v1.0/c", {"flac": b"2"})]
        assert shards.skipped == 1
        assert "extension starts at the first dot" in shards.faults[0][1]
        assert "a.b.flac" in shards.faults[0][1]
        with pytest.raises(UserError, match="extension starts at the first dot"):
            ShardSet([write(tmp_path / "b.tar", [("a.b.flac", b"1")])], ["flac"])

    def test_large_member_and_bomb(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        members = [("a.jpg", bytes(100)), ("b.jpg", bytes(100_000)), ("c.jpg", bytes(100))]
        path = write(tmp_path / "a.tar.gz", members, "w:gz")
        monkeypatch.setattr(headers, "MEMBER_BYTES", 50_000)
        shards = ShardSet([path], ["jpg"])
        assert shards.keys == ["a", "c"]
        assert "members above 50,000 bytes are skipped" in shards.faults[0][1]
        monkeypatch.setattr(sources, "SHARD_BYTES", 50_000)
        monkeypatch.setattr(sources, "CHUNK", 1000)
        shards = ShardSet([path], ["jpg"])
        assert shards.keys == ["a"]
        assert shards.faults[0][1] == "holds more than 50,000 bytes; the rest is not read"
        assert shards._source(0).memory < 52_000

    @pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
    def test_claimed_sizes_are_not_believed(self, tmp_path: Path, kind: bytes) -> None:
        huge = special("huge.jpg", kind)
        huge.size = 10 << 30
        path = write(tmp_path / "a.tar", THREE)
        whole = path.read_bytes()[: 6 * 2560] + huge.tobuf() + bytes(2048)
        path.write_bytes(whole)
        os.truncate(path, 11 << 30)  # sparse: takes no space
        shards = ShardSet([path], ["jpg"])
        assert everything(shards) == THREE_READ
        assert len(shards.faults) >= 1

    def test_shard_that_shrinks_or_goes_during_the_run(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.tar", THREE)
        shards = ShardSet([path], ["jpg"])
        os.truncate(path, 5200)
        assert shards.read(0)[0] == "0"
        with pytest.raises(SelfdistillError, match=f"data.train: shard '{path}' is not what it w"):
            shards.read(2)
        moved = pickle.loads(pickle.dumps(shards))
        shutil.rmtree(tmp_path)
        with pytest.raises(UserError, match=f"cannot read shard '{path}'"):
            moved.read(0)

    @pytest.mark.parametrize("sidecars", [False, True])
    @pytest.mark.parametrize("way", ["overwritten", "touched", "replaced"])
    def test_shard_that_becomes_another_during_the_run(
        self, tmp_path: Path, way: str, sidecars: bool
    ) -> None:
        first, second = shards_on_disk(tmp_path, 2, sidecars)
        shards = ShardSet([first, second], ["jpg"])
        expected = [shards.read(i) for i in (0, 12)]
        travelled = pickle.loads(pickle.dumps(shards))
        data = first.read_bytes()
        if way == "replaced":
            (tmp_path / "new").write_bytes(data[::-1])
            shutil.copystat(first, tmp_path / "new")
            os.replace(tmp_path / "new", first)
        elif way == "overwritten":
            first.write_bytes(data[::-1])
        else:
            os.utime(first, ns=(0, 0))
        words = f"data.train: shard '{first}' is not what it was when the run started"
        assert travelled.read(12) == expected[1]
        with pytest.raises(SelfdistillError, match=words):
            travelled.read(0)
        if way == "replaced":  # what is open is still the file that was indexed
            assert [shards.read(i) for i in (0, 12)] == expected
        else:
            with pytest.raises(SelfdistillError, match=words):
                shards.read(0)


class TestSidecars:
    """Shards with an index beside them."""

    def test_headers_are_not_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        paths = shards_on_disk(tmp_path, 3, sidecars=False)
        expected = ShardSet(paths, ["jpg"])
        shards_on_disk(tmp_path, 3)
        monkeypatch.setattr("selfdistill.data.shard.list_tar", None)
        shards = ShardSet(paths, ["jpg"])
        assert (shards.sizes, shards.keys) == (expected.sizes, expected.keys)
        assert everything(shards)[4] == ("0-004", {"jpg": b"jpg4" * 300, "cls": b"cls4" * 300})

    def test_gzip(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = write(tmp_path / "a.tar.gz", THREE, "w:gz")
        write_sidecar(path, lengths=None, digest="")
        monkeypatch.setattr("selfdistill.data.shard.list_tar", None)
        assert everything(ShardSet([path], ["jpg"])) == THREE_READ

    def test_what_does_not_fit_is_not_used(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        paths = shards_on_disk(tmp_path, 5)
        write(paths[0], THREE)  # another size
        write(paths[4], [*MEMBERS[:-1], ("a.jpg", bytes(1501))])  # of the same size
        assert paths[4].stat().st_size == paths[3].stat().st_size
        beside = [path.with_name(path.name + ".index") for path in paths]
        beside[1].write_bytes(beside[1].read_bytes()[:-1])
        beside[2].unlink()
        beside[2].mkdir()
        with caplog.at_level(logging.WARNING):
            shards = ShardSet(paths, ["jpg"])
        (record,) = caplog.records
        message = record.getMessage()
        assert message.startswith(
            "data.train: 4 indexes beside the shards cannot be used; the headers are read instead: "
        )
        assert set(message.partition("instead: ")[2].split("; ")) == {
            f"s-0.tar: it is that of 51,200 bytes, the shard has {paths[0].stat().st_size:,}",
            "s-1.tar: SafetensorError: Error while deserializing: incomplete metadata, file not "
            "fully covered",
            "s-2.tar: it cannot be read: Is a directory",
            "s-4.tar: it is that of another shard of the same size",
        }
        assert shards.sizes == [3, 12, 12, 12, 13]
        assert everything(shards)[:3] == THREE_READ

    def test_one_of_the_samples_in_another_order_is_not_used(self, tmp_path: Path) -> None:
        for name in ("%03d", "\u00e4%03d", 99 * "x" + "%03d"):
            members = [(name % i + ".jpg", b"%03d" % i) for i in range(12)]
            path = write(tmp_path / "a.tar", members)
            write_sidecar(path, lengths=np.arange(12, dtype=np.float32), digest="")
            assert ShardSet([path], ["jpg"]).known_lengths()[0] == 0
        path = write(tmp_path / "a.tar", [(f"{i:03d}.jpg", b"%03d" % i) for i in range(12)])
        write_sidecar(path, lengths=None, digest="")
        write(path, [(f"{i:03d}.jpg", b"%03d" % i) for i in reversed(range(12))])
        assert ShardSet([path], ["jpg"]).read(0) == ("011", {"jpg": b"011"})

    def test_an_index_of_nothing_wanted(self, tmp_path: Path) -> None:
        (path,) = shards_on_disk(tmp_path, 1)
        with pytest.raises(UserError, match=r"no sample with a member \.flac \(found: jpg\)"):
            ShardSet([path], ["flac"])

    def test_a_shard_that_cannot_be_read_has_an_index(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (path,) = shards_on_disk(tmp_path, 1)
        monkeypatch.setattr("selfdistill.data.shard.open", forbidden, raising=False)
        with pytest.raises(UserError, match=f"cannot read shard '{path}': Permission denied"):
            ShardSet([path], ["jpg"])


class TestLengths:
    def measure(self, members: Mapping[str, bytes]) -> float:
        if members["jpg"].startswith(b"jpg1"):
            raise BadSample("no length")
        return len(members["jpg"])

    def test_known_ones_are_not_measured(self, tmp_path: Path) -> None:
        shards = ShardSet(shards_on_disk(tmp_path), ["jpg"])
        found = shards.lengths(lambda members: 1 / 0)
        assert found.dtype == np.float32
        assert found.tolist() == [100 * shard + i for shard in range(3) for i in range(12)]

    def test_unknown_ones_are_measured(self, tmp_path: Path) -> None:
        first, second = shards_on_disk(tmp_path, 2, sidecars=False)
        lengths = np.full(12, 7, np.float32)
        lengths[[0, 1, 2]] = np.nan, -1, np.inf
        write_sidecar(second, lengths=lengths, digest="")
        found = ShardSet([first, second], ["jpg"]).lengths(self.measure)
        measured = [1200.0, 0.0, *[1200.0] * 8, 0.0, 0.0]
        assert found.tolist() == [*measured, *measured[:3], *[7.0] * 9]
