"""What reading, decoding and augmenting cost beside the same calls in a bare loop, on one core.

    python tests/benchmarks/data_throughput.py [image audio text] [--rounds 15]

The bare loop has its inputs in memory and calls nothing but the decoder and the transform; ours
reads shards and does all that training does to a sample before the batch. Both take turns, ABBA, in
one process; compared is CPU time, which other programs on the machine hardly change, by the median
of the rounds' ratios. Inputs are made here: pictures of 500 x 375 pixels with the spectrum of
photographs, clips of 15 s in FLAC, and passages of the Bible from the package.
"""

import argparse
import io
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import sentencepiece
import soundfile
import torch
import webdataset
from made_inputs import bible, clip, picture
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform
from torch import Tensor
from torchvision.io import decode_jpeg
from torchvision.transforms import v2

from selfdistill.config_files.load import build_config
from selfdistill.data.pipeline import InputPipeline
from selfdistill.data.shards import ShardSet
from selfdistill.modalities.base import load_modality
from selfdistill.modalities.text.tokenizer import (
    MODEL_FILE,
    TOKENIZER_FILE,
    load_tokenizer,
)
from selfdistill.modalities.text.training import train_tokenizer

Loop = Callable[[], object]
SEED = 0


@dataclass(frozen=True)
class Contest:
    """Loops over the same samples; the first is what the others are measured by.

    Attributes:
        count: samples of one pass.
        unit: of ``amount``.
        amount: what a pass handles, in that unit.
    """

    title: str
    count: int
    unit: str
    amount: float
    loops: dict[str, Loop]


def run(contest: Contest, rounds: int) -> None:
    for loop in contest.loops.values():
        loop()
    seconds: dict[str, list[float]] = {name: [] for name in contest.loops}
    for number in range(rounds):
        names = list(contest.loops)
        for name in names if number % 2 else reversed(names):
            began = time.process_time()
            contest.loops[name]()
            seconds[name].append(time.process_time() - began)
    first = seconds[next(iter(contest.loops))]
    print(f"\n{contest.title}")
    for name, spent in seconds.items():
        ratios = [bare / own for bare, own in zip(first, spent, strict=True)]
        speed, each = contest.amount / median(spent), 1e6 * median(spent) / contest.count
        print(
            f"  {name:44}{speed:12,.1f} {contest.unit}{each:12,.0f} us each"
            f"{median(ratios):9.1%} ({min(ratios):.0%} to {max(ratios):.0%})",
            flush=True,
        )


def ours(pipeline: InputPipeline, shards: ShardSet) -> Loop:
    """What a data worker does to each sample before the batch."""
    places = count()

    def loop() -> None:
        for i in range(len(shards)):
            _, members = shards.read(i)
            rng = np.random.default_rng([SEED, next(places), 1])
            pipeline.augment(pipeline.decode(members), rng)

    return loop


def pipeline_of(modality: str, **sections: Any) -> Any:
    config = build_config({"modality": modality, "run_dir": "unused", **sections}, load_modality)
    return load_modality(modality).build_pipeline(config)


def shard(folder: Path, extension: str, contents: Iterable[bytes]) -> ShardSet:
    path = folder / f"{extension}.tar"
    with webdataset.TarWriter(str(path), encoder=False) as tar:
        for number, content in enumerate(contents):
            tar.write({"__key__": f"{number:06d}", extension: content})
    return ShardSet([path], [extension])


def images(folder: Path) -> Iterator[Contest]:
    rng = np.random.default_rng(SEED)
    contents = [picture(rng) for _ in range(64)]
    print(f"\nimages: {np.mean([len(c) for c in contents]) / 1e3:.0f} KB on average")
    shards = shard(folder, "jpg", contents)
    for name, jitter in (("random resized crop, flip", 0.0), ("the same with colour jitter", 0.4)):
        pipeline = pipeline_of("image", input={"color_jitter": jitter})
        bare = partial(_bare_images, contents, timm_transform(jitter))
        loops: dict[str, Loop] = {"bare: PIL, timm": bare, "ours": ours(pipeline, shards)}
        yield Contest(f"images, {name}", len(contents), "images/s", len(contents), loops)
    arrays = [torch.frombuffer(bytearray(c), dtype=torch.uint8) for c in contents]
    decoders: dict[str, Loop] = {
        "PIL": partial(each, lambda c: Image.open(io.BytesIO(c)).convert("RGB"), contents),
        "torchvision.io.decode_jpeg": partial(each, decode_jpeg, arrays),
    }
    if find_spec("simplejpeg"):
        import simplejpeg

        decoders["simplejpeg"] = partial(each, simplejpeg.decode_jpeg, contents)
    yield Contest("images, decoding alone", len(contents), "images/s", len(contents), decoders)
    transform = timm_transform(0.0)
    tensors = v2.Compose(
        [
            v2.RandomResizedCrop(224, interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
        ]
    )

    def by_both(array: Tensor) -> object:
        return transform(Image.fromarray(decode_jpeg(array).permute(1, 2, 0).numpy()))

    chains: dict[str, Loop] = {
        "PIL, crop by PIL": partial(_bare_images, contents, transform),
        "decode_jpeg, crop by PIL": partial(each, by_both, arrays),
        "decode_jpeg, crop of the tensor": partial(
            each, lambda array: tensors(decode_jpeg(array)), arrays
        ),
    }
    yield Contest("images, other decoders", len(contents), "images/s", len(contents), chains)


def timm_transform(jitter: float) -> Callable[[Image.Image], Any]:
    transform: Callable[[Image.Image], Any] = create_transform(
        input_size=224,
        is_training=True,
        color_jitter=jitter,
        auto_augment=None,
        interpolation="bicubic",
    )
    return transform


def each(function: Callable[[Any], object], items: Iterable[Any]) -> None:
    """Keeps nothing, as a list of results would."""
    for item in items:
        function(item)


def _bare_images(contents: list[bytes], transform: Callable[[Image.Image], Any]) -> None:
    for content in contents:
        transform(Image.open(io.BytesIO(content)).convert("RGB")).numpy()


def audio(folder: Path) -> Iterator[Contest]:
    rng = np.random.default_rng(SEED)
    contents = [clip(rng) for _ in range(32)]
    print(f"\naudio: {np.mean([len(c) for c in contents]) / 1e3:.0f} KB on average")
    shards = shard(folder, "flac", contents)
    loops: dict[str, Loop] = {
        "bare: soundfile, normalise": partial(each, partial(_bare_clip, np.float64), contents),
        "the same in float32": partial(each, partial(_bare_clip, np.float32), contents),
        "ours": ours(pipeline_of("audio"), shards),
        "soundfile alone": partial(each, lambda c: soundfile.read(io.BytesIO(c)), contents),
    }
    seconds = 15.0 * len(contents)
    yield Contest("audio, 15 s of FLAC", len(contents), "times real time", seconds, loops)


def _bare_clip(kind: type, content: bytes) -> np.ndarray:
    wave = soundfile.read(io.BytesIO(content), dtype="float32")[0].astype(kind, copy=False)
    return ((wave - wave.mean()) / np.sqrt(wave.var() + 1e-7)).astype(np.float32, copy=False)


def text(folder: Path) -> Iterator[Contest]:
    passages = bible()
    train_tokenizer(passages, 8000, folder)
    bare = sentencepiece.SentencePieceProcessor(model_file=str(folder / MODEL_FILE))
    path = folder / TOKENIZER_FILE
    section = {"tokenizer": str(path), "max_tokens": 512}
    pipeline = pipeline_of("text", encoder={"vocab_size": 8000}, input=section)
    for joined in (1, 12):
        texts = [" ".join(passages[i : i + joined]) for i in range(0, len(passages), joined)]
        tokens = sum(map(len, bare.encode(texts)))
        warm = load_tokenizer(path)
        shards = shard(folder, "txt", [text.encode() for text in texts])
        loops: dict[str, Loop] = {
            "bare: SentencePiece": partial(each, bare.encode, texts),
            "ours, tokenising": partial(each, warm.encode_literally, texts),
            "ours, tokenising, no word known": partial(_cold, path, texts),
            "ours, all": ours(pipeline, shards),
            "the whole passage by tokenizers": partial(each, warm.literal.encode, texts),
        }
        title = f"text, passages of {tokens / len(texts):.0f} tokens"
        yield Contest(title, len(texts), "tokens/s", tokens, loops)


def _cold(path: Path, texts: list[str]) -> None:
    each(load_tokenizer(path).encode_literally, texts)


CONTESTS = {"image": images, "audio": audio, "text": text}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modalities", nargs="*", metavar="image audio text")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.modalities or CONTESTS:
        with tempfile.TemporaryDirectory() as folder:
            for contest in CONTESTS[name](Path(folder)):
                run(contest, options.rounds)


if __name__ == "__main__":
    main()
