"""Sources to inputs."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from selfdistill.errors import UserError
from selfdistill.packing.declaration import Packing
from selfdistill.packing.entries import Entry
from selfdistill.packing.inputs import Inputs
from selfdistill.packing.sources import Sources


def manifest(path: Path) -> Iterator[Entry]:
    yield Entry("/elsewhere/a.wav", "b/a", 1.0, 2.5)


PACKING = Packing(
    suffixes=(".wav", ".jsonl.gz"),
    options=object,
    unit="",
    read=NotImplemented,
    survey=NotImplemented,
    manifests={".tsv": manifest},
)


def listed(out: Path, *sources: Path) -> Inputs:
    return Inputs.of(Sources([str(source) for source in sources], PACKING, out).entries())


def names(inputs: Inputs) -> list[str]:
    return [inputs[i].name for i in range(len(inputs))]


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def test_a_folder_stands_for_what_is_in_it(tmp_path: Path) -> None:
    root = tmp_path / "in"
    touch(root / "b.wav", root / "a/z.WAV", root / "a/y.jsonl.gz", root / "a.b/c d.wav")
    touch(root / ".hidden.wav", root / ".git/a.wav", root / "a/notes.txt", root / "LICENSE")
    sources = Sources([str(root)], PACKING, tmp_path / "out")
    inputs = Inputs.of(sources.entries())
    assert names(inputs) == ["a/y.jsonl.gz", "a/z.WAV", "a.b/c d.wav", "b.wav"]
    assert [inputs[i].key for i in range(4)] == ["a/y", "a/z", "a_b/c_d", "b"]
    assert inputs[0].path == str(root / "a/y.jsonl.gz")
    assert (inputs[0].size, inputs[0].mtime) == (1, os.stat(root / "a/y.jsonl.gz").st_mtime_ns)
    assert sources.ignored == {".txt": 1, "LICENSE": 1}
    assert inputs.size == 4


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    root = tmp_path / "in"
    touch(root / "a/x.wav", tmp_path / "far/y.wav")
    (root / "b").symlink_to(tmp_path / "far")
    (root / "a/up").symlink_to(root)
    (root / "gone.wav").symlink_to(root / "nothing")
    (root / "self.wav").symlink_to(root / "self.wav")
    inputs = listed(tmp_path / "out", root)
    assert names(inputs) == ["a/x.wav", "b/y.wav", "gone.wav", "self.wav"]
    assert (inputs[2].size, inputs[3].size) == (-1, -1)


def test_the_folder_that_is_written_to_is_left_out(tmp_path: Path) -> None:
    touch(tmp_path / "a.wav", tmp_path / "out/b.wav")
    assert names(listed(tmp_path / "out", tmp_path)) == ["a.wav"]


def test_keys_are_unique(tmp_path: Path) -> None:
    touch(tmp_path / "1/a.wav", tmp_path / "2/a.wav", tmp_path / "1/a.WAV", tmp_path / "1/a b.wav")
    touch(tmp_path / "1/a_b.wav")
    inputs = listed(tmp_path / "out", tmp_path / "1", tmp_path / "2", tmp_path / "2/a.wav")
    found = [inputs[i].key for i in range(len(inputs))]
    assert found == ["a_b", "a", "a~2", "a_b~2", "a~3", "a~4"]


def test_names_that_are_no_text(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\xff\xfe.wav"
    with open(path, "wb") as file:
        file.write(b"x")
    inputs = listed(tmp_path / "out", tmp_path)
    assert os.fsencode(inputs[0].path) == path
    assert (inputs[0].key, inputs[0].size) == ("__", 1)


def test_a_manifest_names_parts_of_files_and_samples(tmp_path: Path) -> None:
    touch(tmp_path / "list.TSV")
    entry = listed(tmp_path / "out", tmp_path / "list.TSV")[0]
    assert (entry.path, entry.name, entry.key) == ("/elsewhere/a.wav", "b/a", "b/a")
    assert (entry.start, entry.stop, entry.size) == (1.0, 2.5, -1)


def test_sources_that_cannot_be(tmp_path: Path) -> None:
    touch(tmp_path / "a.txt", tmp_path / "out/in/a.wav")
    for source, words in (
        ("none", r"there is no '.*none'; check the path"),
        ("a.txt", r"'.*a\.txt' is nothing that can be packed; give folders of \.wav, .*\.tsv"),
        ("out/in", r"'.*out/in' lies in --out"),
        ("out", r"'.*out' lies in --out"),
        ("long" * 99, r"cannot read '.*long': File name too long"),
    ):
        with pytest.raises(UserError, match=rf"^SOURCE: {words}"):
            Sources([str(tmp_path / source)], PACKING, tmp_path / "out")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "in/locked").mkdir(parents=True)
    (tmp_path / "in/locked").chmod(0)
    with pytest.raises(UserError, match=r"cannot read folder '.*locked': Permission denied"):
        listed(tmp_path / "out", tmp_path / "in")


def test_what_changed_is_said(tmp_path: Path) -> None:
    root = tmp_path / "in"
    touch(*(root / f"{name}.wav" for name in "abcdef"))
    before = listed(tmp_path / "out", root)
    before.save(tmp_path / "inputs.npz")
    before = Inputs.load(tmp_path / "inputs.npz")
    assert listed(tmp_path / "out", root).change_since(before) == ""
    root.rename(tmp_path / "moved")
    root = tmp_path / "moved"
    assert listed(tmp_path / "out", root).change_since(before) == ""
    os.utime(root / "a.wav", ns=(0, 5))
    for name in "bcde":
        (root / f"{name}.wav").unlink()
    touch(root / "new.wav")
    assert listed(tmp_path / "out", root).change_since(before) == (
        "4 gone (b.wav, c.wav, d.wav, ...), 1 new (new.wav), 1 changed (a.wav)"
    )
    files = root / "a.wav", root / "f.wav"
    pair, turned = listed(tmp_path / "out", *files), listed(tmp_path / "out", *reversed(files))
    assert turned.change_since(pair) == "they come in another order"


def test_many_inputs_take_little_memory() -> None:
    entries = (Entry(f"/data/{i % 7}/{i}.wav", f"{i % 7}/{i}.wav") for i in range(20_000))
    inputs = Inputs.of(entries)
    assert inputs._columns.nbytes + len(inputs._paths) < 20_000 * 70
    assert inputs[19_999].key == "0/19999"
    assert np.all(inputs._columns["copy"] == 0)
