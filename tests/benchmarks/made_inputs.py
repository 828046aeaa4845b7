"""Pictures, clips and passages that cost as much to read as usual ones, and shards of them.

    python tests/benchmarks/made_inputs.py FOLDER [--images 4096] [--clips 1024] [--passages 8192]

writes FOLDER/image-*.tar, pictures of 500 x 375 pixels with the spectrum of photographs;
FOLDER/audio-*.tar, clips of 15 s in FLAC; and FOLDER/text-*.tar, passages of more than 512 tokens,
made of those of the Bible in the package. All cores make them.
"""

import argparse
import io
import multiprocessing
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import numpy as np
import soundfile
import webdataset
from PIL import Image

from selfdistill.data.locations import resolve
from selfdistill.data.shards import ShardSet
from selfdistill.modalities.text.data import read_passage

SHARDS = 16
Make = Callable[[np.random.Generator], bytes]


def picture(rng: np.random.Generator, height: int = 375, width: int = 500) -> bytes:
    """Noise whose amplitude falls with the frequency, more so in colour, as a JPEG."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency[0, 0] = 1 / width
    planes = []
    for steepness in (1.15, 1.6, 1.6):  # brightness, and two colours
        spectrum = np.fft.rfft2(rng.normal(size=(height, width))) / frequency**steepness
        plane = np.fft.irfft2(spectrum, s=(height, width))
        planes.append((plane - plane.mean()) / plane.std())
    scaled = np.stack(planes, axis=-1) * (48, 24, 24) + 128
    out = io.BytesIO()
    pixels = scaled.clip(0, 255).astype(np.uint8)
    Image.fromarray(pixels, "YCbCr").convert("RGB").save(out, "JPEG", quality=90)
    return out.getvalue()


def clip(rng: np.random.Generator, seconds: int = 15, rate: int = 16_000) -> bytes:
    """Noise that falls off above 500 Hz, in syllables, as a FLAC."""
    count = seconds * rate
    spectrum = np.fft.rfft(rng.normal(size=count))
    spectrum /= np.maximum(np.arange(len(spectrum)) / (500 * seconds), 1) ** 1.2
    loudness = rng.gamma(1.0, size=5 * seconds + 1)
    wave = np.fft.irfft(spectrum, count)
    wave *= np.interp(np.arange(count) * 5 / rate, np.arange(len(loudness)), loudness)
    out = io.BytesIO()
    soundfile.write(out, 0.9 * wave / np.abs(wave).max(), rate, format="FLAC", subtype="PCM_16")
    return out.getvalue()


@cache
def bible() -> list[str]:
    """The passages in the package."""
    found = ShardSet(resolve(["sample://text/train.tar.gz"]), ["txt"])
    return [read_passage(found.read(i)[1]) for i in range(len(found))]


def passage(rng: np.random.Generator, joined: int = 24) -> bytes:
    """Passages of the Bible, in UTF-8."""
    return " ".join(rng.choice(bible(), joined)).encode()


MADE: dict[str, tuple[str, Make]] = {
    "image": ("jpg", picture),
    "audio": ("flac", clip),
    "text": ("txt", passage),
}


def write_shard(folder: Path, modality: str, samples: int, number: int) -> None:
    extension, make = MADE[modality]
    rng = np.random.default_rng(number)
    path = folder / f"{modality}-{number:02d}.tar"
    with webdataset.TarWriter(str(path), encoder=False) as tar:
        for sample in range(samples):
            tar.write({"__key__": f"{number:02d}-{sample:06d}", extension: make(rng)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--clips", type=int, default=1024)
    parser.add_argument("--passages", type=int, default=8192)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    counts = {"image": options.images, "audio": options.clips, "text": options.passages}
    with multiprocessing.Pool() as pool:
        for modality, samples in counts.items():
            one = partial(write_shard, options.folder, modality, samples // SHARDS)
            pool.map(one, range(SHARDS), chunksize=1)


if __name__ == "__main__":
    main()
