"""Make the sample audio: spoken English words in many voices (``train.tar.gz``, ``test.tar.gz``).

Command, from any folder::

    python make.py [--out FOLDER] [--seed N] [--jobs N]

It needs numpy, scipy, soundfile and webdataset, and on Debian 12 the package ``espeak-ng``
(``apt install --no-install-recommends espeak-ng``). The same seed, library versions and kind of
processor give the same bytes: the serial numbers that libsndfile draws are replaced.

One sample is ``KEY.opus``, one word of 0.5 to 1.2 seconds at 16 kHz, one channel, and ``KEY.cls``,
the index of the word in ``CLASSES``. A voice is an accent and a variant of espeak-ng; neither the
accents nor the variants of the test set are in the training set. Each voice says each word once.
"""

import argparse
import io
import math
import os
import subprocess
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import soundfile
from scipy.signal import resample_poly

from selfdistill.samples.shard import write_shard

CLASSES = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    *("yes", "no", "up", "down", "left", "right", "stop", "go", "on", "off"),
)
# The same words in a spelling that languages with a regular spelling read nearly as English.
RESPELLED = (
    *("zero", "uan", "tu", "tri", "for", "faiv", "siks", "seven", "eit", "nain"),
    *("ies", "nou", "ap", "daun", "left", "rait", "stop", "gou", "on", "of"),
)
# Accents that read English spelling, and languages that get the other spelling.
ENGLISH = (
    ("en-029", "en-gb", "en-gb-scotland", "en-gb-x-gbcwmd", "en-us", "en-us-nyc", "hi"),
    ("en-gb-x-gbclan", "en-gb-x-rp", "ru"),
)
FOREIGN = (
    ("cs", "eo", "es", "eu", "fi", "hr", "id", "it", "lv", "pl", "sq", "sw"),
    ("ca", "et", "hu", "ro", "sk"),
)
VARIANTS = (
    (
        *("m1", "m2", "m3", "m4", "m5", "m7", "f1", "f2", "f4", "adam", "Alex", "Andy"),
        *("Annie", "Gene", "Jacky", "Lee", "Michael", "Mike", "linda", "steph"),
    ),
    ("m6", "m8", "f3", "f5", "Denis", "Mario", "belinda", "edward"),
)
VOICES = (120, 32)  # in each split
RATE = 16000
SHORTEST, LONGEST = 0.5, 1.2  # seconds
SNR = (8, 28)  # decibels, of the speech over the noise
COMPRESSION = 0.92  # of the Opus encoder, 0 to 1
SERIAL = 1  # of each Ogg stream, in place of a random one


def ogg_table() -> list[int]:
    """The table of the checksum of Ogg pages (polynomial 0x04c11db7, not reflected)."""
    table = []
    for byte in range(256):
        value = byte << 24
        for _ in range(8):
            value = (value << 1) ^ (0x04C11DB7 if value & 0x80000000 else 0)
        table.append(value & 0xFFFFFFFF)
    return table


OGG_TABLE = ogg_table()


def fix_serial(stream: bytes) -> bytes:
    """An Ogg stream with its serial number replaced by ``SERIAL`` on every page."""
    data = bytearray(stream)
    start = 0
    while start < len(data):
        if data[start : start + 4] != b"OggS":
            raise ValueError("not an Ogg page")
        segments = data[start + 26]
        end = start + 27 + segments + sum(data[start + 27 : start + 27 + segments])
        data[start + 14 : start + 18] = SERIAL.to_bytes(4, "little")
        data[start + 22 : start + 26] = bytes(4)
        check = 0
        for byte in data[start:end]:
            check = ((check << 8) & 0xFFFFFFFF) ^ OGG_TABLE[(check >> 24) ^ byte]
        data[start + 22 : start + 26] = check.to_bytes(4, "little")
        start = end
    return bytes(data)


def speak(voice: str, text: str, pitch: int, speed: int) -> np.ndarray:
    """The sound of a text at ``RATE``, without the silence at its ends."""
    command = ["espeak-ng", "--stdout", "-v", voice, "-p", str(pitch), "-s", str(speed), text]
    done = subprocess.run(command, capture_output=True, check=True)
    # The header of a piped WAV gives no length: the samples begin after 44 bytes.
    raw = np.frombuffer(done.stdout[44:], dtype="<i2").astype(np.float64) / 32768
    sound = resample_poly(raw, 320, 441)  # espeak-ng speaks at 22050 Hz
    frames = len(sound) // 160
    level = np.sqrt(np.mean(sound[: frames * 160].reshape(frames, 160) ** 2, axis=1))
    heard = np.flatnonzero(level > 0.01 * level.max())
    return sound[heard[0] * 160 : (heard[-1] + 1) * 160]


def curve(frequency: np.ndarray, depth: float, rng: np.random.Generator) -> np.ndarray:
    """A smooth random gain over frequency, of up to about ``depth`` decibels."""
    place = np.log2(1 + frequency / 200)
    knots = np.linspace(0, place[-1], 6)
    return 10 ** (np.interp(place, knots, rng.uniform(-depth, depth, len(knots))) / 20)


def colour(sound: np.ndarray, depth: float, rng: np.random.Generator) -> np.ndarray:
    """A sound with its spectrum reshaped by a random curve."""
    spectrum = np.fft.rfft(sound)
    frequency = np.fft.rfftfreq(len(sound), 1 / RATE)
    return np.fft.irfft(spectrum * curve(frequency, depth, rng), len(sound))


def make_clip(task: tuple[str, str, tuple[int, int, int]]) -> bytes:
    """The Opus file of one clip, from its voice, text and random seed."""
    voice, text, seed = task
    rng = np.random.default_rng(seed)
    most = round(LONGEST * RATE)
    sound = speak(voice, text, int(rng.integers(25, 76)), int(rng.integers(135, 216)))
    sound = colour(sound[: most - 800], 9.0, rng)
    before = int(rng.uniform(0.02, 0.25) * RATE)
    after = int(rng.uniform(0.02, 0.25) * RATE)
    spare = most - len(sound)
    if before + after > spare:
        before, after = before * spare // (before + after), after * spare // (before + after)
    after = max(after, round(SHORTEST * RATE) - before - len(sound))
    power = np.mean(sound**2)
    sound = np.concatenate([np.zeros(before), sound, np.zeros(after)])
    noise = colour(rng.normal(0, 1, len(sound)), 12.0, rng)
    noise *= math.sqrt(power / np.mean(noise**2)) * 10 ** (-rng.uniform(*SNR) / 20)
    sound = sound + noise
    sound *= 0.9 / np.abs(sound).max() * 10 ** (-rng.uniform(0, 18) / 20)
    samples = np.round(sound * 32767).astype(np.int16)
    stream = io.BytesIO()
    soundfile.write(
        stream, samples, RATE, format="OGG", subtype="OPUS", compression_level=COMPRESSION
    )
    return fix_serial(stream.getvalue())


def voices(split: int, rng: np.random.Generator) -> list[tuple[str, tuple[str, ...]]]:
    """The voices of a split, each with the spelling of the words that it reads."""
    accents = [(accent, CLASSES) for accent in ENGLISH[split]]
    accents += [(accent, RESPELLED) for accent in FOREIGN[split]]
    pairs = [
        (f"{accent}+{variant}", words) for accent, words in accents for variant in VARIANTS[split]
    ]
    return [pairs[i] for i in rng.permutation(len(pairs))[: VOICES[split]]]


def make(split: int, out: Path, seed: int, jobs: int) -> None:
    """Make one shard: split 0 is for training, 1 for testing."""
    name = ("train", "test")[split]
    rng = np.random.default_rng([seed, split])
    chosen = voices(split, rng)
    tasks = [(voice, label, words) for voice, words in chosen for label in range(len(CLASSES))]
    order = [int(i) for i in rng.permutation(len(tasks))]
    seeded = [(tasks[i][0], tasks[i][2][tasks[i][1]], (seed, split, i)) for i in order]
    clips = []
    with ProcessPoolExecutor(jobs) as pool:
        for clip in pool.map(make_clip, seeded, chunksize=16):
            clips.append(clip)
            if len(clips) % 100 == 0 or len(clips) == len(seeded):
                print(f"\r{name}: {len(clips)} of {len(seeded)}", end="", flush=True)
    target = out / f"{name}.tar.gz"
    labels = [tasks[i][1] for i in order]
    write_shard(target, name, "opus", zip(clips, labels, strict=True))
    print(f" clips, {len(chosen)} voices, {target.stat().st_size} bytes")


def main() -> None:
    """Read the command line and make both shards."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for split in (0, 1):
        make(split, args.out, args.seed, args.jobs)


if __name__ == "__main__":
    main()
