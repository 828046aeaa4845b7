"""The exported processors make of a raw file what the package makes of it; of text see
test_auto_tokenizer."""

import dataclasses
import io
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import transformers
from agreement import arguments, shipped
from PIL import Image, ImageOps
from transformers import (
    AutoFeatureExtractor,
    AutoImageProcessor,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2Processor,
)

from selfdistill.config import RunConfig
from selfdistill.data.pipeline import InputPipeline
from selfdistill.errors import UserError
from selfdistill.hub.reader import HubFolder
from selfdistill.hub.writer import config_json
from selfdistill.modalities.base import load_modality
from selfdistill.modalities.image.data import ImagePipeline
from selfdistill.modalities.image.pixels import normalised

pytestmark = pytest.mark.usefixtures("no_network")

Make = Callable[..., RunConfig]
CLOSE = 1e-5
RATE = 16_000
BACKENDS: dict[str, dict[str, Any]] = {
    "pil": {"backend": "pil"},
    "torchvision": {"backend": "torchvision"},
    "default": {},
}
if not hasattr(transformers, "BeitImageProcessorPil"):  # before the backends had names
    BACKENDS |= {"pil": {"use_fast": False}, "torchvision": {"use_fast": True}}


def written(config: RunConfig, folder: Path) -> tuple[InputPipeline, Path]:
    """The pipeline of a config, and the folder that now holds the processor's files."""
    modality = load_modality(config.modality)
    assert modality.hub is not None
    for name, text in modality.hub.processor(config, folder).items():
        (folder / name).write_text(text, encoding="utf-8")
    return modality.build_pipeline(config), folder


def pixel_values(pipeline: InputPipeline, data: bytes) -> np.ndarray:
    """float32 [3, height, width] of a PNG file, as the encoder takes them."""
    assert isinstance(pipeline, ImagePipeline)
    example = torch.from_numpy(pipeline.plain(pipeline.decode({"png": data})))
    return normalised(example, pipeline.mean, pipeline.std).numpy()


def wav(waveform: np.ndarray, rate: int = RATE) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, waveform, rate, format="WAV", subtype="FLOAT")
    return file.getvalue()


def sounds() -> dict[str, np.ndarray]:
    """Spoken words, noise of many lengths, and what is hard to normalise."""
    rng = np.random.default_rng(0)
    made = {
        f"word {i}": soundfile.read(io.BytesIO(shipped("audio/train").read(i)[1]["opus"]))[0]
        for i in range(3)
    }
    made |= {f"noise {n}": 0.3 * rng.standard_normal(n) for n in (60, 401, 8_000, 16_123)}
    made["silence"] = np.zeros(5_000)
    made["nearly silence"] = 1e-4 * rng.standard_normal(5_000)
    made["loud, with an offset"] = 0.2 + 3 * rng.standard_normal(5_000)
    return made


@pytest.mark.parametrize("normalize", [True, False])
def test_sound(normalize: bool, tiny_config: Make, tmp_path: Path) -> None:
    config = tiny_config("audio", input={"normalize": normalize})
    pipeline, folder = written(config, tmp_path)
    extractor = AutoFeatureExtractor.from_pretrained(folder)
    examples, raws = [], []
    for name, waveform in sounds().items():
        data = wav(waveform)
        raw, rate = soundfile.read(io.BytesIO(data))
        inputs = extractor(raw, sampling_rate=rate, return_tensors="np")
        ours = pipeline.plain(pipeline.decode({"wav": data}))
        assert inputs["input_values"].shape == (1, len(ours)), name
        assert np.abs(inputs["input_values"][0] - ours).max() < CLOSE, name
        assert inputs["attention_mask"].all()
        examples.append(ours)
        raws.append(raw)
    batch = arguments(config, pipeline.collate(examples, None))
    theirs = extractor(raws, sampling_rate=rate, padding=True, return_tensors="pt")
    assert theirs.keys() == batch.keys()
    assert torch.equal(theirs["attention_mask"], batch["attention_mask"])
    assert (theirs["input_values"] - batch["input_values"]).abs().max() < CLOSE
    assert (theirs["input_values"][~theirs["attention_mask"].bool()] == 0).all()
    changed = np.abs(examples[0] - raws[0]).max() > 0.1
    assert changed == normalize


def test_the_extractor_knows_the_rate(tiny_config: Make, tmp_path: Path) -> None:
    config = tiny_config("audio", input={"sampling_rate": 8_000})
    pipeline, folder = written(config, tmp_path)
    extractor = AutoFeatureExtractor.from_pretrained(folder)
    data = wav(sounds()["word 0"], 8_000)
    raw, rate = soundfile.read(io.BytesIO(data))
    inputs = extractor(raw, sampling_rate=rate, return_tensors="np")["input_values"]
    assert np.abs(inputs[0] - pipeline.plain(pipeline.decode({"wav": data}))).max() < CLOSE
    with pytest.raises(ValueError, match="sampling rate of 8000"):
        extractor(raw, sampling_rate=RATE)


def test_longer_clips_are_cropped_as_in_the_run(tiny_config: Make, tmp_path: Path) -> None:
    """Also after transformers has read the file and written it again."""
    config = tiny_config("audio", input={"max_seconds": 0.5})
    modality = load_modality("audio")
    assert modality.hub is not None
    pipeline, folder = written(config, tmp_path)
    AutoFeatureExtractor.from_pretrained(folder).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config_json(modality.hub, config)))
    found = modality.build_pipeline(HubFolder(folder, "MODEL").config())
    clip = pipeline.decode({"wav": wav(sounds()["noise 16123"])})
    assert len(found.plain(clip)) == RATE // 2
    assert np.array_equal(found.plain(clip), pipeline.plain(clip))


def test_an_extractor_that_was_saved_with_a_tokenizer(tiny_config: Make, tmp_path: Path) -> None:
    """As after fine-tuning for CTC; transformers 5 then has one file for both."""
    config = tiny_config("audio", input={"normalize": False, "sampling_rate": 8_000})
    modality = load_modality("audio")
    assert modality.hub is not None
    _, folder = written(config, tmp_path)
    (folder / "vocab.json").write_text('{"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4}')
    extractor = AutoFeatureExtractor.from_pretrained(folder)
    tokenizer = Wav2Vec2CTCTokenizer(str(folder / "vocab.json"))
    saved = folder / "saved"
    Wav2Vec2Processor(extractor, tokenizer).save_pretrained(saved)
    (saved / "config.json").write_text(json.dumps(config_json(modality.hub, config)))
    found = HubFolder(saved, "MODEL").config().input
    assert (found.normalize, found.sampling_rate) == (False, 8_000)


def pictures(size: tuple[int, int]) -> dict[str, bytes]:
    """PNG files of a width and height: a letter, and noise."""
    rng = np.random.default_rng(0)
    letter = Image.open(io.BytesIO(shipped("image/train").read(0)[1]["png"]))
    noise = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    made = {}
    for name, picture in (("letter", letter.resize(size, Image.Resampling.BILINEAR)), ("", noise)):
        file = io.BytesIO()
        picture.save(file, "PNG")
        made[name or "noise"] = file.getvalue()
    return made


def kinds() -> dict[str, bytes]:
    """Files of a picture as they are found in the wild."""
    rng = np.random.default_rng(0)
    plain = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((48, 40))
    turned, clear = plain.rotate(180), plain.copy()
    clear.putalpha(Image.linear_gradient("L").resize(plain.size))
    table, exif = plain.quantize(32), Image.Exif()
    exif[0x0112] = 6
    animated = {"save_all": True, "append_images": [turned]}
    cmyk = io.BytesIO()
    plain.convert("CMYK").save(cmyk, "JPEG")
    ycck = bytearray(cmyk.getvalue())
    ycck[ycck.index(b"Adobe") + 11] = 2  # the transform that its channels went through
    made: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
        "grey": (plain.convert("L"), "PNG", {}),
        "grey with a clear value": (plain.convert("L"), "PNG", {"transparency": 90}),
        "a clear colour": (plain, "PNG", {"transparency": plain.getpixel((0, 0))}),
        "clear": (clear, "PNG", {}),
        "clear webp": (clear, "WEBP", {"lossless": True, "exact": True}),
        "grey and clear": (clear.convert("LA"), "PNG", {}),
        "palette": (table, "PNG", {}),
        "palette with a clear entry": (table, "PNG", {"transparency": 3}),
        "palette, each entry clear": (table, "PNG", {"transparency": bytes(range(0, 256, 8))}),
        "turned jpeg": (plain, "JPEG", {"exif": exif}),
        "turned palette": (table, "PNG", {"exif": exif, "transparency": 3}),
        "animated gif": (table, "GIF", {**animated, "transparency": 3}),
        "animated png": (plain, "PNG", animated),
        "animated webp": (clear, "WEBP", animated),
    }
    found = {"cmyk": cmyk.getvalue(), "ycck": bytes(ycck)}
    for name, (picture, kind, options) in made.items():
        file = io.BytesIO()
        picture.save(file, kind, **options)
        found[name] = file.getvalue()
    return found


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
def test_the_lines_of_readme_and_card_give_what_a_run_trains_on(
    tiny_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, modality = tiny_config("image"), load_modality("image")
    assert modality.hub is not None
    lines = [line for line in modality.hub.usage(config).splitlines() if line.startswith("pict")]
    assert "\n".join(lines) in (Path(__file__).parents[2] / "README.md").read_text("utf-8")
    pipeline = modality.build_pipeline(config)
    monkeypatch.chdir(tmp_path)
    for name, data in kinds().items():
        Path("picture.jpg").write_bytes(data)
        found: dict[str, Any] = {"Image": Image, "ImageOps": ImageOps}
        exec("\n".join(lines), found)
        theirs = np.asarray(found["picture"].convert("RGB"))
        assert np.array_equal(theirs, np.asarray(pipeline.decode({"jpg": data}))), name


def off(
    size: tuple[int, int], backend: str, config: RunConfig, folder: Path
) -> dict[str, np.ndarray]:
    """Differences of the normalised pixels [3, height, width] by picture."""
    pipeline, folder = written(config, folder)
    processor = AutoImageProcessor.from_pretrained(folder, **BACKENDS[backend])
    found = {}
    for name, data in pictures(size).items():
        picture = Image.open(io.BytesIO(data)).convert("RGB")
        theirs = processor(picture, return_tensors="pt")["pixel_values"]
        ours = pixel_values(pipeline, data)
        assert theirs.shape == (1, *ours.shape)
        found[name] = np.abs(theirs[0].numpy() - ours)
    return found


@pytest.fixture
def config(tiny_config: Make) -> RunConfig:
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    return tiny_config("image", input={"size": [48, 48], "mean": mean, "std": std})


def read_as(config: RunConfig, folder: Path, **fields: Any) -> tuple[InputPipeline, Path]:
    """The pipeline for a folder whose processor has other fields (None: not there)."""
    hub = load_modality("image").hub
    assert hub is not None
    written(config, folder)
    path = folder / "preprocessor_config.json"
    processor = {**json.loads(path.read_text()), **fields}
    processor = {key: value for key, value in processor.items() if value is not None}
    path.write_text(json.dumps(processor))
    theirs = hub.sections(hub.config(config), processor, folder)
    same = dataclasses.replace(config.input, **theirs["input"])
    return load_modality("image").build_pipeline(dataclasses.replace(config, input=same)), folder


@pytest.mark.parametrize(
    "fields",
    [
        {"do_normalize": False},
        {"image_mean": None, "image_std": None},
        {"image_mean": 0.5, "image_std": 0.25},
        {"do_rescale": False},
        {"rescale_factor": 1 / 127.5},
        {"rescale_factor": None, "do_normalize": None, "do_rescale": None},
        {"do_normalize": False, "do_rescale": False},
    ],
)
def test_pixels_are_those_of_the_processor(
    fields: dict[str, Any], config: RunConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pipeline, folder = read_as(config, tmp_path, **fields)
    processor = AutoImageProcessor.from_pretrained(folder, **BACKENDS["pil"])
    data = pictures((48, 48))["noise"]
    theirs = processor(Image.open(io.BytesIO(data)), return_tensors="np")["pixel_values"][0]
    ours = pixel_values(pipeline, data)
    assert np.abs(theirs - ours).max() < CLOSE * max(1, np.abs(theirs).max())
    assert not caplog.records


@pytest.mark.parametrize(
    "fields",
    [{"do_resize": False}, {"resample": 2}, {"do_center_crop": True}, {"size": {"height": 9}}],
)
def test_other_sizing_is_told(
    fields: dict[str, Any], config: RunConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        read_as(config, tmp_path, **fields)
    ((name, value),) = fields.items()
    assert f"preprocessor_config.json has {name}={value}, but here" in caplog.text


@pytest.mark.parametrize("side", [224, 48])
def test_an_empty_file_of_a_processor(
    side: int, tiny_config: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It stands for what transformers' own processor is without one."""
    config = tiny_config("image", input={"size": [side, side]})
    modality = load_modality("image")
    assert modality.hub is not None
    (tmp_path / "config.json").write_text(json.dumps(config_json(modality.hub, config)))
    (tmp_path / "preprocessor_config.json").write_text("{}")
    found = HubFolder(tmp_path, "MODEL").config()
    words = "preprocessor_config.json has no size (then it is 224), but here"
    assert [words in record.getMessage() for record in caplog.records] == [True] * (side != 224)
    processor = AutoImageProcessor.from_pretrained(tmp_path, **BACKENDS["pil"])
    data = pictures((224, 224))["noise"]
    picture = Image.open(io.BytesIO(data))
    size = {"height": side, "width": side}
    theirs = processor(picture, size=size, do_center_crop=False, return_tensors="np")
    pipeline = modality.build_pipeline(found)
    ours = pixel_values(pipeline, data)
    assert np.abs(theirs["pixel_values"][0] - ours).max() < CLOSE


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"image_mean": [0.5]}, r"image_mean is \[0\.5\]; expected a number, or three"),
        ({"image_std": "x"}, "image_std is 'x'"),
        ({"rescale_factor": "x"}, "rescale_factor is 'x'"),
    ],
)
def test_a_damaged_processor(
    fields: dict[str, Any], words: str, config: RunConfig, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=rf"^preprocessor_config\.json: {words}"):
        read_as(config, tmp_path, **fields)


def test_the_old_way_to_write_sizes(
    config: RunConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    read_as(config, tmp_path, size=48)
    assert not caplog.records


@pytest.mark.parametrize("backend", BACKENDS)
def test_pictures_of_the_models_size(backend: str, config: RunConfig, tmp_path: Path) -> None:
    assert max(d.max() for d in off((48, 48), backend, config, tmp_path).values()) < CLOSE


SIZES = [(32, 32), (47, 49), (20, 30), (37, 100), (100, 37), (300, 200), (5, 7), (700, 1000)]


@pytest.mark.parametrize("size", SIZES)
def test_pictures_of_other_sizes(size: tuple[int, int], config: RunConfig, tmp_path: Path) -> None:
    """Pillow, which the package uses too, gives the same. torchvision rounds otherwise: found were
    up to 2 steps of 8 bits in a letter and 15 in noise, 0.2 and 0.4 on average."""
    assert max(d.max() for d in off(size, "pil", config, tmp_path).values()) < CLOSE
    steps = 255 * np.array(config.input.std)[:, None, None]
    found = {name: d * steps for name, d in off(size, "torchvision", config, tmp_path).items()}
    assert found["letter"].max() < 3
    assert found["noise"].max() < 20
    assert max(d.mean() for d in found.values()) < 0.5
