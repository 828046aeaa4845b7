"""Pictures to samples."""

import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from raw_data import content, packed, picture, samples, skipped, write_pictures

from selfdistill.errors import UserError
from selfdistill.modalities.image.config import ImageInputConfig


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def test_files_are_copied_under_the_name_of_their_format(tmp_path: Path) -> None:
    root = tmp_path / "in"
    root.mkdir()
    for name in ("a.jpg", "b.JPEG", "c.png", "d.webp", "dotted.v1 name.jpg"):
        picture().save(root / name)
    picture().save(root / "liar.jpg", "PNG")
    picture().save(root / "old.jpg", "GIF")
    packed("image", root, tmp_path / "out")
    found = samples(tmp_path / "out")
    assert {key: list(members) for key, members in found.items()} == {
        "a": ["jpg"],
        "b": ["jpg"],
        "c": ["png"],
        "d": ["webp"],
        "dotted_v1_name": ["jpg"],
        "liar": ["png"],
        "old": ["jpg"],
    }
    assert found["b"]["jpg"] == (root / "b.JPEG").read_bytes()
    assert found["d"]["webp"] == (root / "d.webp").read_bytes()


def test_every_mode_of_picture_is_taken(tmp_path: Path) -> None:
    root = tmp_path / "in"
    root.mkdir()
    for mode in ("L", "RGB", "CMYK"):
        picture(mode=mode).save(root / f"{mode}.jpg", progressive=mode == "RGB")
    for mode in ("1", "L", "P", "RGBA", "I;16"):
        name = mode.replace(";", "")
        image = picture(mode="L" if mode == "I;16" else mode)
        if mode == "I;16":
            image = Image.fromarray(np.asarray(image).astype(np.uint16) * 256)
        image.save(root / f"{name}.png")
    packed("image", root, tmp_path / "out", max_side=0)
    packed("image", root, tmp_path / "small", max_side=10)
    assert len(samples(tmp_path / "out")) == len(samples(tmp_path / "small")) == 8
    assert not skipped(tmp_path / "small")
    for members in samples(tmp_path / "small").values():
        assert opened(members["jpg"]).size == (10, 8)


def test_large_ones_are_made_smaller_if_asked_for(tmp_path: Path) -> None:
    root = tmp_path / "in"
    root.mkdir()
    picture(size=(900, 300)).resize((300, 100)).save(root / "wide.jpg")
    turned = Image.Exif()
    turned[0x0112] = 6
    colours = Image.new("RGB", (300, 100), "red")
    colours.paste("blue", (150, 0, 300, 100))
    colours.save(root / "turned.jpg", exif=turned)
    picture(size=(64, 40)).save(root / "fits.jpg")
    picture(size=(900, 9)).save(root / "line.png")
    packed("image", root, tmp_path / "out", max_side=64)
    found = samples(tmp_path / "out")
    assert found["fits"]["jpg"] == (root / "fits.jpg").read_bytes()
    assert opened(found["wide"]["jpg"]).size == (64, 21)
    upright = opened(found["turned"]["jpg"])
    assert upright.size == (21, 64)
    assert upright.getpixel((10, 5))[0] > 200
    assert upright.getpixel((10, 60))[2] > 200
    assert skipped(tmp_path / "out") == {"line.png": "image of one pixel's width or height"}


def test_what_cannot_be_used_is_skipped(tmp_path: Path) -> None:
    root = tmp_path / "in"
    root.mkdir()
    for kind in ("jpg", "png", "webp"):
        picture(size=(200, 200)).save(root / f"good.{kind}")
        data = (root / f"good.{kind}").read_bytes()
        (root / f"cut.{kind}").write_bytes(data[: len(data) // 2])
    (root / "empty.jpg").write_bytes(b"")
    (root / "words.png").write_bytes(b"this is no picture")
    (root / "program.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    picture(size=(30, 1)).save(root / "line.png")
    (root / "gone.jpg").symlink_to("nothing")
    packed("image", root, tmp_path / "out")
    assert sorted(samples(tmp_path / "out")) == ["good", "good~2", "good~3"]
    undecodable = ("cut.jpg", "cut.png", "cut.webp", "words.png", "program.jpg")
    assert skipped(tmp_path / "out") == {
        **dict.fromkeys(undecodable, "undecodable image"),
        "empty.jpg": "empty image",
        "line.png": "image of one pixel's width or height",
        "gone.jpg": "cannot be read",
    }


@pytest.mark.parametrize("max_side", [0, 16])
def test_a_bomb_is_not_decoded(
    max_side: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageInputConfig, "max_pixels", 5000)
    (tmp_path / "in").mkdir()
    picture(size=(71, 70)).save(tmp_path / "in/fits.png")
    picture(size=(71, 71)).save(tmp_path / "in/large.png")
    data = bytearray((tmp_path / "in/fits.png").read_bytes()[:200])
    data[16:24] = struct.pack(">II", 30_000, 30_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    (tmp_path / "in/bomb.png").write_bytes(bytes(data))
    packed("image", tmp_path / "in", tmp_path / "out", max_side=max_side)
    assert list(samples(tmp_path / "out")) == ["fits"]
    too_many = "image over input.max_pixels=5000"
    assert skipped(tmp_path / "out") == {"large.png": too_many, "bomb.png": too_many}


def test_labels_are_the_folders(tmp_path: Path) -> None:
    write_pictures(tmp_path / "in", 3, classes=("bee", "ant", "\u00e4 b.c"))
    (tmp_path / "in/bee/deeper").mkdir()
    picture(9).save(tmp_path / "in/bee/deeper/x.jpg")
    packed("image", tmp_path / "in", tmp_path / "out", labels="folder")
    found = samples(tmp_path / "out")
    assert all(list(members) == ["jpg", "cls"] for members in found.values())
    labels = {key: int(members["cls"]) for key, members in found.items()}
    assert (labels["ant/ant_0"], labels["bee/bee_2"], labels["bee/deeper/x"]) == (0, 1, 1)
    assert len(labels) == 10
    assert json.loads(content(tmp_path / "out")["classes.json"]) == ["ant", "bee", "\u00e4 b.c"]


def test_names_that_are_no_text_are_spelt_out(tmp_path: Path) -> None:
    root = tmp_path / "in"
    write_pictures(root, 2, classes=("ant", "caf\udce9"))
    (root / "ant/caf\udce9.jpg").write_bytes(b"no picture")
    packed("image", root, tmp_path / "out", labels="folder")
    files = content(tmp_path / "out")
    assert json.loads(files["classes.json"]) == ["ant", "caf\\xe9"]
    found = samples(tmp_path / "out").values()
    assert sorted(int(members["cls"]) for members in found) == [0, 0, 1, 1]
    assert json.loads(files["summary.json"])["samples"] == 4
    assert len(skipped(tmp_path / "out")) == 1
    classes = str(tmp_path / "out/classes.json")
    packed("image", root, tmp_path / "again", labels=classes)
    assert content(tmp_path / "again")["classes.json"] == files["classes.json"]


def test_labels_may_be_those_of_another_set(tmp_path: Path) -> None:
    write_pictures(tmp_path / "train", 1, classes=("ant", "bee", "cow"))
    write_pictures(tmp_path / "test", 1, classes=("bee", "cow"))
    packed("image", tmp_path / "train", tmp_path / "a", labels="folder")
    classes = str(tmp_path / "a/classes.json")
    packed("image", tmp_path / "test", tmp_path / "b", labels=classes)
    assert {key: m["cls"] for key, m in samples(tmp_path / "b").items()} == {
        "bee/bee_0": b"1",
        "cow/cow_0": b"2",
    }
    assert content(tmp_path / "a")["classes.json"] == content(tmp_path / "b")["classes.json"]
    write_pictures(tmp_path / "test", 1, classes=("dog",))
    with pytest.raises(UserError, match=r"classes\.json has no class 'dog' \(1 such folders\)"):
        packed("image", tmp_path / "test", tmp_path / "c", labels=classes)


def test_without_labels_there_are_none(tmp_path: Path) -> None:
    write_pictures(tmp_path / "in", 1)
    packed("image", tmp_path / "in", tmp_path / "out")
    assert "classes.json" not in content(tmp_path / "out")
    assert all(list(members) == ["jpg"] for members in samples(tmp_path / "out").values())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_side": 1}, "--max-side: 1 must be 2 or more"),
        ({"labels": "none.json"}, r"--labels: cannot read 'none\.json' .* write 'folder'"),
        ({"labels": "folder"}, r"--labels: '.*in/x\.jpg' lies in no folder of a class"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    (tmp_path / "in/here").mkdir(parents=True)
    picture().save(tmp_path / "in/here/x.jpg")
    picture().save(tmp_path / "in/here/x.jpg" if "none" in words else tmp_path / "in/x.jpg")
    with pytest.raises(UserError, match=words):
        packed("image", tmp_path / "in", tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
