"""Folders of files as people have them, for the tests of packing."""

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image

from selfdistill.pack import pack, packing_of
from selfdistill.packing.declaration import Job
from selfdistill.packing.plan import Shape

RATE = 4000
Members = dict[str, bytes]


def noise(seconds: float, seed: int = 0, rate: int = RATE, channels: int = 1) -> np.ndarray:
    """float32 [n, channels], loud all the way."""
    rng = np.random.default_rng(seed)
    return rng.uniform(-0.5, 0.5, (int(seconds * rate), channels)).astype(np.float32)


def write_sound(
    path: Path, values: np.ndarray, rate: int = RATE, subtype: str | None = None
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    formats = {"opus": "OGG", "ogg": "OGG"}
    kind = formats.get(path.suffix[1:].lower(), path.suffix[1:].upper())
    if path.suffix == ".opus":
        subtype = "OPUS"
    with open(path, "wb") as file:
        soundfile.write(file, values, rate, format=kind, subtype=subtype)
    return path


def write_librispeech(folder: Path, clips: int = 6) -> Path:
    """split/speaker/chapter/*.flac with a transcript per chapter."""
    for speaker, chapter in ((103, 1240), (103, 1241), (2002, 139469)):
        place = folder / "train-clean-100" / str(speaker) / str(chapter)
        for i in range(clips):
            name = f"{speaker}-{chapter}-{i:04d}"
            write_sound(place / f"{name}.flac", noise(0.3 + 0.05 * i, seed=speaker + chapter + i))
        (place / f"{speaker}-{chapter}.trans.txt").write_text("THE QUICK\n")
    return folder


def picture(seed: int = 0, size: tuple[int, int] = (20, 16), mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).convert(
        mode
    )


def write_pictures(folder: Path, count: int = 8, classes: Sequence[str] = ("ant", "bee")) -> Path:
    """CLASS/*.jpg, as ImageFolder has them."""
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            picture(100 * number + i).save(folder / name / f"{name}_{i}.jpg")
    return folder


def sentences(count: int, seed: int = 0) -> list[str]:
    """Sentences of invented words."""
    rng = np.random.default_rng(seed)
    words = [f"{a}{b}" for a in ("ba", "ki", "mo", "tu", "re") for b in ("lo", "da", "ni", "sep")]
    return [
        " ".join(rng.choice(words, int(rng.integers(4, 12)))).capitalize() + "."
        for _ in range(count)
    ]


def write_texts(folder: Path, documents: int = 60) -> Path:
    """Plain text with a blank line between documents, and lines of JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = [" ".join(sentences(1 + i % 7, seed=i)) for i in range(documents)]
    half = documents // 2
    (folder / "plain.txt").write_text("\n\n".join(texts[:half]) + "\n", encoding="utf-8")
    lines = [json.dumps({"text": text}) for text in texts[half:]]
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


SMALL = {
    "audio": {"min_seconds": 0.0, "max_seconds": 2.0},
    "image": {},
    "text": {"max_tokens": 24, "vocab_size": 300},
}
"""Options that suit the above."""


def packed(
    modality: str,
    sources: Sequence[Path] | Path,
    out: Path,
    *,
    shards: int = 1,
    seed: int = 0,
    workers: int = 1,
    **options: Any,
) -> list[str]:
    """Pack in this process; returns the summary's lines."""
    sources = [sources] if isinstance(sources, Path) else sources
    own = packing_of(modality).options(**(SMALL[modality] | options))
    shape = Shape("train", 500_000_000, shards)
    return pack(modality, [str(source) for source in sources], Job(out, own, seed), shape, workers)


def content(out: Path) -> dict[str, bytes]:
    """Every file that is not hidden, by name."""
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name[0] != "."}


def samples(out: Path) -> dict[str, Members]:
    """Key to members, of all shards."""
    found: dict[str, Members] = {}
    for path in sorted(out.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                file = tar.extractfile(member)
                assert file is not None
                assert extension not in found.setdefault(key, {})
                found[key][extension] = file.read()
    return found


def skipped(out: Path) -> dict[str, str]:
    """Name to reason."""
    rows = [json.loads(line) for line in (out / "skipped.jsonl").read_text("utf-8").splitlines()]
    return {row["name"]: row["reason"] for row in rows}


def sound(data: bytes) -> tuple[np.ndarray, int]:
    """int16 [n, channels] and the rate."""
    values, rate = soundfile.read(io.BytesIO(data), dtype="int16", always_2d=True)
    return values, rate
