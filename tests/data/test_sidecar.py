import gzip
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rough_server import MEMBERS, tar_bytes
from safetensors.numpy import load, save
from webdataset import TarWriter

from selfdistill.data import sidecar as sidecar_module
from selfdistill.data.headers import list_tar
from selfdistill.data.sidecar import BadSidecar, Sidecar, read_sidecar, write_sidecar
from selfdistill.data.sources import open_file
from selfdistill.data.tarindex import TarIndex

DIGEST = "ab" * 32


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    path = tmp_path / "a.tar"
    path.write_bytes(tar_bytes())
    return path


def index_of(path: Path, *, lengths: np.ndarray | None = None) -> bytes:
    beside = write_sidecar(path, lengths=lengths, digest=DIGEST)
    assert beside == path.with_name(path.name + ".index")
    return beside.read_bytes()


def assert_equal(found: TarIndex, expected: TarIndex) -> None:
    for name in ("names", "name_ends", "first", "members"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert ours.dtype == theirs.dtype, name
        np.testing.assert_array_equal(ours, theirs, err_msg=name)
    assert (found.skipped, found.others) == (expected.skipped, expected.others)
    assert found.faults == expected.faults


ODD = [
    *MEMBERS[:5],
    ("b/x.JPG", b"1"),
    ("b/x.jpg", b"again"),
    ("b/x.json", b"{}"),
    ("c/only.json", b"{}"),
    ("../out.jpg", b"2"),
    ("v.1.jpg", b"3"),
    ("d\u00e9j\u00e0/" + "x" * 200 + ".jpg", b"4"),
    ("README", b"5"),
    ("b/x.cls", b"6"),
    ("empty.jpg", b""),
]


def write_tar(kind: str, path: Path) -> Path:
    if kind == "webdataset":
        with TarWriter(str(path), encoder=False) as writer:
            for i in range(5):
                writer.write({"__key__": f"k/{i}", "jpg": b"j" * i, "json": b"{}", "cls": b"1"})
    elif kind == "gzip":
        path.write_bytes(gzip.compress(tar_bytes(ODD)))
    elif kind == "cut":
        path.write_bytes(tar_bytes()[:5000])
    else:
        form = {"gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}[kind]
        with tarfile.open(path, "w", format=form) as archive:
            for name, data in ODD:
                (path.parent / "member").write_bytes(data)
                archive.add(path.parent / "member", name)
    return path


@pytest.mark.parametrize("extensions", [("jpg",), ("json", "jpg"), ("flac",)])
@pytest.mark.parametrize("kind", ["webdataset", "gnu", "pax", "gzip", "cut"])
def test_it_says_what_the_headers_say(
    tmp_path: Path, kind: str, extensions: tuple[str, ...]
) -> None:
    path = write_tar(kind, tmp_path / "a.tar")
    source = open_file(path, "key")
    lengths = np.arange(len(list_tar(source)), dtype=np.float32)
    found = read_sidecar(index_of(path, lengths=lengths), extensions)
    expected, kept = list_tar(source).select(extensions)
    assert_equal(found.index, expected)
    assert (found.size, found.sha256) == (path.stat().st_size, DIGEST)
    assert found.lengths is not None
    assert found.lengths.dtype == np.float32
    np.testing.assert_array_equal(found.lengths, lengths[kept])


def test_what_is_selected(tmp_path: Path) -> None:
    found = read_sidecar(index_of(write_tar("pax", tmp_path / "a.tar")), ["json", "jpg"])
    index = found.index
    names = [index.name(i) for i in range(len(index))]
    assert names[:4] == ["000", "001", "002", "b/x"]
    assert names[-1] == "empty"
    data = (tmp_path / "a.tar").read_bytes()
    members = {e: data[offset : offset + size] for e, offset, size in index.places(3)}
    assert members == {0: b"{}", 1: b"1", 2: b"6"}
    assert [fault.partition(" (")[0][:24] for fault in index.faults] == [
        "paths that lead out of t",
        "hidden files and those w",
        "duplicates of an earlier",
        "skipped for a dot in the",
    ]
    assert "'v.1.jpg'" in index.faults[3]
    assert found.lengths is None


def test_equal_shards_give_equal_indexes(tmp_path: Path) -> None:
    path = write_tar("gnu", tmp_path / "a.tar")
    lengths = np.zeros(len(list_tar(open_file(path, "key"))), np.float32)
    contents = {index_of(path, lengths=lengths) for _ in range(5)}
    assert len(contents) == 1


def test_unknown_lengths_stay_unknown(shard: Path) -> None:
    lengths = np.full(12, np.nan, np.float32)
    found = read_sidecar(index_of(shard, lengths=lengths), ["jpg"]).lengths
    assert found is not None
    assert np.isnan(found).all()
    with pytest.raises(ValueError, match=r"lengths of shape \(11,\) for 12 samples"):
        write_sidecar(shard, lengths=lengths[1:], digest=DIGEST)


Arrays = dict[str, np.ndarray]
About = dict[str, Any]


def altered(content: bytes, alter: Callable[[Arrays, About], object]) -> bytes:
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    about, arrays = json.loads(header["__metadata__"]["shard"]), load(content)
    arrays = {name: array.copy() for name, array in arrays.items()}
    alter(arrays, about)
    return save(arrays, {"shard": json.dumps(about)})


def put(name: str, place: int, value: int) -> Callable[[Arrays, About], None]:
    def alter(arrays: Arrays, about: About) -> None:
        arrays[name][place] = value

    return alter


def say(**changes: object) -> Callable[[Arrays, About], None]:
    return lambda arrays, about: about.update(changes)


def replace(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[..., None]:
    return lambda arrays, about: arrays.update({name: change(arrays[name])})


@pytest.mark.parametrize(
    ("alter", "words"),
    [
        (put("block", 3, 2**32 - 1), "outside the shard"),
        (put("block", 23, 98), "outside the shard"),
        (put("block", 0, 0), "outside the shard"),
        (put("size", 5, -1), "outside the shard"),
        (put("size", 5, 2**31 - 1), "outside the shard"),
        (put("extension", 5, 2), "outside the shard"),
        (put("members", 0, 0), "do not fit together"),
        (put("members", 0, 2**32 - 1), "do not fit together"),
        (put("name_lengths", 0, 2**32 - 1), "do not fit together"),
        (say(tar_bytes=1000), "outside the shard"),
        (say(tar_bytes=-1), "wrong type"),
        (say(tar_bytes=10**30), "wrong type"),
        (say(bytes="5"), "wrong type"),
        (say(sha256=5), "wrong type"),
        (say(extensions=["jpg", 5]), "wrong type"),
        (say(extensions="jpgcls"), "wrong type"),
        (say(faults=[5]), "wrong type"),
        (say(repeated=[[0, 1]]), "ValueError"),
        (say(repeated=[[7, 1, "x"]]), "repeats an extension"),
        (say(repeated=[[0, -1, "x"]]), "wrong type"),
        (say(version=2), "version 2, this package reads 1"),
        (replace("size", lambda a: a.astype(np.int64)), "size is of the wrong kind"),
        (replace("names", lambda a: a[None]), "names is of the wrong kind"),
        (replace("block", lambda a: a[:-1]), "do not fit together"),
        (replace("lengths", lambda a: a[:-1]), "one length for each"),
        (replace("lengths", lambda a: a.astype(np.float64)), "no float32"),
        (lambda arrays, about: arrays.pop("block"), "KeyError"),
        (lambda arrays, about: about.pop("faults"), "KeyError"),
    ],
)
def test_what_cannot_be_is_refused(shard: Path, alter: Callable[..., None], words: str) -> None:
    good = index_of(shard, lengths=np.zeros(12, np.float32))
    assert len(read_sidecar(altered(good, lambda *_: None), ["jpg"]).index) == 12
    with pytest.raises(BadSidecar, match=words):
        read_sidecar(altered(good, alter), ["jpg"])


@pytest.mark.parametrize("name", [b"../", b"a/../..", b"/ab", b"..", b"a/.."])
def test_names_that_lead_out_are_refused(tmp_path: Path, name: bytes) -> None:
    path, key = tmp_path / "a.tar", "x" * len(name)
    path.write_bytes(tar_bytes([("00.jpg", b""), (f"{key}.jpg", b""), ("zz..z/z.jpg", b"")]))
    content = index_of(path)
    assert read_sidecar(content, ["jpg"]).index.name(2) == "zz..z/z"
    with pytest.raises(BadSidecar, match="leads out of the shard"):
        read_sidecar(content.replace(key.encode(), name), ["jpg"])
    path.write_bytes(tar_bytes([(f"{key}.jpg", b"")]))
    with pytest.raises(BadSidecar, match="leads out of the shard"):
        read_sidecar(index_of(path).replace(key.encode(), name), ["jpg"])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"short",
        b"<html>not found</html>" * 100,
        (1 << 40).to_bytes(8, "little") + b"{}",
        (1 << 19).to_bytes(8, "little") + b"[" * (1 << 19),
        (2).to_bytes(8, "little") + b"{}",
        (4).to_bytes(8, "little") + b"null",
    ],
)
def test_other_files_are_refused(content: bytes) -> None:
    with pytest.raises(BadSidecar):
        read_sidecar(content, ["jpg"])


def test_every_cut_is_refused(shard: Path) -> None:
    whole = index_of(shard)
    for end in range(0, len(whole), 7):
        with pytest.raises(BadSidecar):
            read_sidecar(whole[:end], ["jpg"])


def test_absurd_sizes_are_refused(shard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = index_of(shard)
    monkeypatch.setattr(sidecar_module, "HEADER_BYTES", 100)
    with pytest.raises(BadSidecar, match="a header of"):
        read_sidecar(content, ["jpg"])
    monkeypatch.setattr(sidecar_module, "SIDECAR_BYTES", 100)
    with pytest.raises(BadSidecar, match="bytes are too many"):
        read_sidecar(content, ["jpg"])


def test_every_flipped_byte_is_harmless(shard: Path) -> None:
    content = index_of(shard, lengths=np.zeros(12, np.float32))
    size, read = len(shard.read_bytes()), 0
    for place in range(0, len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 0x55
        try:
            found: Sidecar = read_sidecar(bytes(damaged), ["jpg"])
        except BadSidecar:
            continue
        read += 1
        for i in range(len(found.index)):
            found.index.name(i)
            assert all(0 < o <= o + s <= size for _, o, s in found.index.places(i))
    assert read > 10  # a flipped letter of a name cannot be told
