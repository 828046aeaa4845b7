"""Packed shards in the hands of others, and in training."""

import importlib.util
import io
import json
import shlex
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import soundfile
import webdataset
from PIL import Image
from raw_data import content, packed, samples, write_librispeech, write_pictures, write_texts
from small_runs import SmallRuns

from selfdistill.cli import main
from selfdistill.data.shards import ShardSet

OPTIONS: dict[str, dict[str, Any]] = {
    "audio": {"max_seconds": 30.0},
    "image": {"labels": "folder"},
    "text": {"max_tokens": 24},
}
MEMBERS = {"audio": ("flac",), "image": ("jpg", "cls"), "text": ("txt",)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A packed folder of each modality; not to be changed."""
    root = tmp_path_factory.mktemp("packed")
    sources = {
        "audio": write_librispeech(root / "in/audio"),
        "image": write_pictures(root / "in/image", 10),
        "text": write_texts(root / "in/text"),
    }
    for modality, source in sources.items():
        packed(modality, source, root / modality, shards=3, **OPTIONS[modality])
    return {modality: root / modality for modality in sources}


def shards(folder: Path) -> list[str]:
    return [str(path) for path in sorted(folder.glob("*.tar"))]


@pytest.mark.parametrize("modality", MEMBERS)
def test_shard_set_reads_every_sample(modality: str, folders: dict[str, Path]) -> None:
    found = ShardSet([Path(path) for path in shards(folders[modality])], MEMBERS[modality])
    read = dict(found.read(i) for i in range(len(found)))
    assert not found.faults
    assert read == {
        key: {extension: members[extension] for extension in MEMBERS[modality]}
        for key, members in samples(folders[modality]).items()
    }


@pytest.mark.parametrize("modality", MEMBERS)
def test_webdataset_reads_every_sample(modality: str, folders: dict[str, Path]) -> None:
    data = webdataset.WebDataset(shards(folders[modality]), shardshuffle=False)
    read = {sample["__key__"]: sample for sample in data}
    ours = samples(folders[modality])
    assert list(read) == list(ours)
    for key, members in ours.items():
        assert {name: read[key][name] for name in members} == members


def test_webdataset_decodes_them(folders: dict[str, Path]) -> None:
    data = webdataset.WebDataset(shards(folders["image"]), shardshuffle=False).decode("pil")
    labels = {sample["__key__"]: (sample["cls"], sample["jpg"].size) for sample in data}
    assert labels["bee/bee_3"] == (1, (20, 16))
    assert len(labels) == 20


@pytest.mark.parametrize("modality", MEMBERS)
def test_datasets_of_hugging_face_read_every_sample(
    modality: str, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets", reason="Hugging Face datasets is not installed")
    if importlib.util.find_spec("torchcodec") is None:
        # it is imported, but not used for what is not decoded
        codec: Any = ModuleType("torchcodec.encoders")
        codec.AudioEncoder = None
        monkeypatch.setitem(sys.modules, "torchcodec.encoders", codec)
        monkeypatch.setitem(sys.modules, "torchcodec", ModuleType("torchcodec"))
    data = datasets.load_dataset(
        "webdataset",
        data_files={"train": shards(folders[modality])},
        split="train",
        streaming=True,
        cache_dir=str(tmp_path),
    )
    ours = samples(folders[modality])
    if modality == "audio":
        data = data.cast_column("flac", datasets.Audio(decode=False))
    read = {row["__key__"]: row for row in data}
    assert list(read) == list(ours)
    for key, members in ours.items():
        if modality == "audio":
            assert read[key]["flac"]["bytes"] == members["flac"]
            assert read[key]["json"] == json.loads(members["json"])
        elif modality == "image":
            assert read[key]["jpg"].size == Image.open(io.BytesIO(members["jpg"])).size
            assert int(read[key]["cls"]) == int(members["cls"])
        else:
            assert read[key]["txt"] == members["txt"].decode()


def test_timm_reads_every_picture(folders: dict[str, Path]) -> None:
    reader = pytest.importorskip("timm.data.readers.reader_wds", reason="timm has no such reader")
    data = reader.ReaderWds(str(folders["image"]), split="train", batch_size=1)
    assert data.split_info.num_samples == 20
    found = [(image.size, target) for image, target in data]
    assert len(found) == 20
    assert sorted({target for _, target in found}) == [0, 1]
    assert {size for size, _ in found} == {(20, 16)}


def test_clips_are_what_they_were(folders: dict[str, Path]) -> None:
    about = json.loads(content(folders["audio"])["summary.json"])
    assert (about["samples"], about["ignored"]) == (18, {".txt": 3})
    total = 0.0
    for members in samples(folders["audio"]).values():
        values, rate = soundfile.read(io.BytesIO(members["flac"]))
        total += len(values) / rate
    assert total == pytest.approx(about["length"], abs=0.01)


@pytest.mark.parametrize("modality", MEMBERS)
def test_from_files_to_a_model(
    modality: str, folders: dict[str, Path], runs: SmallRuns, tmp_path: Path
) -> None:
    """Pack, pretrain with what packing prints, export."""
    source = folders[modality].parent / "in" / modality
    lines = packed(modality, source, folders[modality], shards=3, **OPTIONS[modality])
    command, verb, config, _, *words = shlex.split(lines[-1])
    assert (command, verb, config) == (
        "selfdistill",
        "pretrain",
        f"{modality}/base_visible",
    )
    small = ["train.steps=2", "train.batch_size=4", "data.workers=1"]
    assert runs.pretrain(modality, tmp_path / "run", *words, *small) == 0
    assert main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "exported")]) == 0
    assert (tmp_path / "exported/model.safetensors").exists()
