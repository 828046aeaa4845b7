import io
import sys
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rough_server import running

from selfdistill.data.files import STDIN, find_inputs, open_inputs
from selfdistill.data.ledger import Bad
from selfdistill.data.pipeline import InputPipeline
from selfdistill.data.plain import Example, Samples, plain_examples
from selfdistill.errors import BadSample, SelfdistillError, UserError

IMAGES = ("png", "jpg")
TEXTS = ("txt", "json")


class Bytes(InputPipeline):
    """Examples are the bytes of the one member."""

    extensions = TEXTS

    def decode(self, sample: Mapping[str, bytes]) -> bytes:
        data = next(sample[e] for e in (*TEXTS, *IMAGES) if e in sample)
        if data.startswith(b"bad"):
            raise BadSample("bad bytes", "3 of them")
        if data.startswith(b"worse"):
            raise ZeroDivisionError("oh")
        return data

    def plain(self, raw: bytes) -> np.ndarray:
        return np.frombuffer(raw, dtype=np.uint8)

    def augment(self, raw: Any, rng: np.random.Generator) -> np.ndarray:
        raise AssertionError("features have no chance in them")

    def collate(self, *arguments: Any) -> Any:
        raise AssertionError("batches are made elsewhere")

    def baseline(self, example: np.ndarray) -> np.ndarray:
        raise AssertionError("this is for the probes")


@pytest.fixture
def put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, bytes], Path]:
    """(name, content) to a file in the current folder."""
    monkeypatch.chdir(tmp_path)

    def write(name: str, content: bytes = b"x") -> Path:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    return write


def shard(name: str, members: Mapping[str, bytes]) -> None:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(name, "w") as tar:
        for member, data in members.items():
            info = tarfile.TarInfo(member)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def read(*names: str, extensions: tuple[str, ...] = TEXTS) -> list[tuple[str, dict[str, bytes]]]:
    samples = open_inputs(find_inputs(names), extensions)
    found = [part.read(i) for part in samples for i in range(len(part.keys))]
    assert [key for key, _ in found] == [key for part in samples for key in part.keys]
    return found


def test_files_keep_their_order_and_their_extension_counts(put: Callable[..., Path]) -> None:
    put("b.PNG", b"1")
    put("a.jpg", b"2")
    found = read("b.PNG", "a.jpg", "b.PNG", extensions=IMAGES)
    assert found == [("b.PNG", {"png": b"1"}), ("a.jpg", {"jpg": b"2"}), ("b.PNG", {"png": b"1"})]


def test_folders_are_walked_in_order_without_what_is_of_no_use(put: Callable[..., Path]) -> None:
    for name in ("d/b/2.png", "d/b/10.png", "d/a.jpg", "d/c.png", "d/notes.md", "d/.hidden.png"):
        put(name)
    put("d/.cache/e.png")
    Path("d/folder.png").mkdir()
    shard("d/bb.tar", {"key.png": b"y"})
    keys = [key for key, _ in read("d", extensions=IMAGES)]
    assert keys == ["d/a.jpg", "d/b/10.png", "d/b/2.png", "key", "d/c.png"]


def test_links_are_followed(put: Callable[..., Path]) -> None:
    put("far/b.png")
    put("d/a.png")
    Path("d/near").symlink_to(Path("far").resolve())
    Path("d/up").symlink_to(Path("d").resolve())
    Path("d/gone.png").symlink_to("nothing")
    found = [key for key, _ in read("d", extensions=IMAGES)]
    assert found == ["d/a.png", "d/near/b.png"]


def test_a_hidden_folder_may_be_named(put: Callable[..., Path]) -> None:
    put(".d/a.png")
    assert read(".d", extensions=IMAGES) == [(".d/a.png", {"png": b"x"})]


def test_lines_are_counted_as_editors_do(put: Callable[..., Path]) -> None:
    put("t.txt", "one\r\n\ntwo\u2028\x0bstill two\nthree".encode())
    put("u.txt", b"four\n")
    lines = [b"one", b"", "two\u2028\x0bstill two".encode(), b"three"]
    expected = [(f"t.txt:{n}", {"txt": line}) for n, line in enumerate(lines, 1)]
    assert read("t.txt", "u.txt") == [*expected, ("u.txt:1", {"txt": b"four"})]


def test_lines_of_the_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"one\ntwo\n")))
    assert find_inputs(["-"]) == [STDIN]
    assert read("-") == [("-:1", {"txt": b"one"}), ("-:2", {"txt": b"two"})]


def test_a_text_of_a_shard_is_one_sample(put: Callable[..., Path]) -> None:
    shard("s.tar", {"a.txt": b"one\ntwo", "b.json": b"{}", "b.cls": b"1"})
    put("c.json", b"{}")
    assert read("s.tar", "c.json") == [
        ("a", {"txt": b"one\ntwo"}),
        ("b", {"json": b"{}", "cls": b"1"}),
        ("c.json", {"json": b"{}"}),
    ]


def test_shards_beside_each_other_are_one_set(put: Callable[..., Path]) -> None:
    for name in ("s-0.tar", "s-1.tar", "s-2.tar"):
        shard(name, {f"{name[2]}.png": b"x"})
    put("a.png")
    paths = find_inputs(["s-{1,0}.tar", "a.png", "s-[2].tar", "sample://image/test.tar.gz"])
    samples = open_inputs(paths, IMAGES)
    assert [part.keys[:2] for part in samples[:2]] == [["1", "0"], ["a.png"]]
    assert samples[2].keys[0] == "2"
    assert len(samples) == 3
    assert len(samples[2].keys) > 100


def test_shards_from_elsewhere(
    put: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    shard("s.tar", {"a.png": b"1"})
    put("b.png", b"2")
    with running() as server:
        server.files["/s.tar"] = Path("s.tar").read_bytes()
        signed = f"{server.url}/s.tar?" + "s" * 300  # longer than the name of a file may be
        found = read(signed, "b.png", extensions=IMAGES)
    assert found == [("a", {"png": b"1"}), ("b.png", {"png": b"2"})]
    assert (tmp_path / "home/.cache/selfdistill/shards").is_dir()


@pytest.mark.parametrize(
    ("name", "extensions", "message"),
    [
        ("none.png", IMAGES, "INPUT: no file matches 'none.png'; check the path"),
        ("http://host/a.png", IMAGES, "INPUT: 'http://host/a.png' is not on this machine; only sh"),
        ("file:///a.png", IMAGES, "INPUT: 'file:///a.png' is no path"),
        ("t.txt", IMAGES, r"'t.txt' is nothing that this model takes; give .png, .jpg, or shards"),
        ("-", IMAGES, "'-' is nothing that this model takes"),
        ("plain", TEXTS, "'plain' is nothing that this model takes; give .txt, .json, or shards"),
        ("d", IMAGES, r"folder 'd' holds nothing that this model takes; .* shards \(.tar, "),
        ("latin.txt", TEXTS, r"'latin.txt' is not UTF-8 \(.* at byte 3\); convert it"),
        ("fake.tar", TEXTS, "INPUT: shard 'fake.tar' is not a tar file"),
    ],
)
def test_what_cannot_be_used_is_refused(
    put: Callable[..., Path], name: str, extensions: tuple[str, ...], message: str
) -> None:
    put("t.txt")
    put("plain")
    put("d/t.txt")
    put("good.png")
    put("latin.txt", b"caf\xe9")
    put("fake.tar", b"x" * 2000)
    good = "t.txt" if extensions == TEXTS else "good.png"
    with pytest.raises(UserError, match=message):
        open_inputs(find_inputs([good, name]), extensions)


def usable(parts: list[Samples], skip: Callable[[Bad], object] = print) -> list[Example]:
    return [example for part in parts for example in plain_examples(part, Bytes(), skip)]


def test_bad_samples_are_reported_and_the_rest_goes_on(put: Callable[..., Path]) -> None:
    shard("s.tar", {"a.txt": b"1", "b.txt": b"worse", "a.cls": b"7"})
    gone = put("gone.json")
    put("t.txt", b"bad\n2")
    samples = open_inputs(find_inputs(["s.tar", "gone.json", "t.txt"]), TEXTS)
    gone.unlink()
    skipped: list[Bad] = []
    found = usable(samples, skipped.append)
    assert [(key, bytes(values), label) for key, values, label in found] == [
        ("a", b"1", 7),
        ("t.txt:2", b"2", None),
    ]
    assert skipped == [
        ("b", "undecodable", "ZeroDivisionError('oh')"),
        ("gone.json", "cannot be read", "No such file or directory"),
        ("t.txt:1", "bad bytes", "3 of them"),
    ]


@pytest.mark.parametrize("label", [b"cat", b"", b"9" * 30])
def test_what_is_no_int64_is_no_label(put: Callable[..., Path], label: bytes) -> None:
    shard("s.tar", {"a.txt": b"1", "a.cls": label})
    samples = open_inputs(find_inputs(["s.tar"]), TEXTS)
    assert [found for _, _, found in usable(samples)] == [None]


def test_a_shard_that_changes_ends_the_work(put: Callable[..., Path]) -> None:
    shard("s.tar", {"a.txt": b"1"})
    samples = open_inputs(find_inputs(["s.tar"]), TEXTS)
    Path("s.tar").write_bytes(b"")
    with pytest.raises(SelfdistillError, match="is not what it was when the run started"):
        usable(samples)
