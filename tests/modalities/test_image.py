"""Images: bytes to upright RGB, augmentation, masks, relative positions."""

import io
import random
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from selfdistill.config import RunConfig
from selfdistill.errors import BadSample, UserError
from selfdistill.masking import row_keys
from selfdistill.modalities.image.data import ImagePipeline
from selfdistill.modalities.image.encoder import ImageEncoder, sincos
from selfdistill.modalities.image.pixels import normalised
from selfdistill.types import Masks, Tokens

Make = Callable[..., RunConfig]
ORIENTATION = 0x0112


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def picture(width: int = 40, height: int = 30) -> Image.Image:
    """Red rises to the right, green downwards."""
    red, green = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([red, green, 0 * red + 90], axis=-1).astype(np.uint8))


@pytest.fixture
def pipeline(tiny_config: Make) -> ImagePipeline:
    return ImagePipeline(tiny_config("image"))


def decode(pipeline: ImagePipeline, content: bytes) -> np.ndarray:
    image = pipeline.decode({"png": content})
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


@pytest.mark.parametrize(("kind", "error"), [("PNG", 0), ("WEBP", 30), ("JPEG", 30)])
def test_formats_decode(kind: str, error: int, pipeline: ImagePipeline) -> None:
    found = decode(pipeline, encoded(picture(), kind))
    assert np.abs(found - np.asarray(picture())).max() <= error


def test_grey_is_repeated(pipeline: ImagePipeline) -> None:
    grey = picture().getchannel(0)
    found = decode(pipeline, encoded(grey))
    assert (found == np.asarray(grey)[..., None]).all()


def test_sixteen_bits_keep_their_range(pipeline: ImagePipeline) -> None:
    values = np.linspace(0, 65535, 1200).astype(np.uint16).reshape(30, 40)
    found = decode(pipeline, encoded(Image.fromarray(values)))
    assert np.array_equal(found[..., 0], values >> 8)


def test_one_bit(pipeline: ImagePipeline) -> None:
    assert set(np.unique(decode(pipeline, encoded(picture().convert("1"))))) == {0, 255}


def test_palettes_are_looked_up(pipeline: ImagePipeline) -> None:
    paletted = picture().quantize(64)
    found = decode(pipeline, encoded(paletted))
    assert np.array_equal(found, np.asarray(paletted.convert("RGB")))


def test_transparency_is_put_on_white(pipeline: ImagePipeline) -> None:
    image = picture().convert("RGBA")
    alpha = np.full((30, 40), 255, dtype=np.uint8)
    alpha[:15] = 0
    image.putalpha(Image.fromarray(alpha))
    found = decode(pipeline, encoded(image))
    assert (found[:15] == 255).all()
    assert np.array_equal(found[15:], np.asarray(picture())[15:])


def test_a_transparent_palette_entry_is_put_on_white(pipeline: ImagePipeline) -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([10, 20, 30, 200, 0, 0])
    image.putpixel((0, 0), 0)
    found = decode(pipeline, encoded(image, transparency=0))
    assert found[0, 0].tolist() == [255, 255, 255]
    assert found[1, 1].tolist() == [200, 0, 0]


def test_cmyk_keeps_its_colours(pipeline: ImagePipeline) -> None:
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    found = decode(pipeline, encoded(image, "JPEG", quality=95))
    assert np.abs(found - np.array([255, 0, 0])).max() < 12


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [(1, None), (3, Image.Transpose.ROTATE_180), (6, Image.Transpose.ROTATE_270)],
)
def test_exif_rotation_is_undone(
    orientation: int, turn: Image.Transpose | None, pipeline: ImagePipeline
) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    found = decode(pipeline, encoded(picture(), exif=exif))
    expected = picture() if turn is None else picture().transpose(turn)
    assert np.array_equal(found, np.asarray(expected))


def exif_data(*entries: bytes) -> bytes:
    """A table of entries in the order of Intel's bytes."""
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(entries) + bytes(4)


TURNED = struct.pack("<HHIHH", ORIENTATION, 3, 1, 6, 0)
WIDTH, NOTE = 0x100, 0x927C


@pytest.mark.parametrize(
    ("entry", "kind"),
    [
        (struct.pack("<HHI4s", WIDTH, 2, 4, b"abc"), "JPEG"),  # a width that is no number
        (struct.pack("<HHIi", WIDTH, 9, 1, -5), "JPEG"),
        (struct.pack("<HHIi", WIDTH, 9, 1, -5), "PNG"),
        (struct.pack("<HHIi", WIDTH, 9, 1, -5), "WEBP"),
        (struct.pack("<HHII", NOTE, 7, 1000, 9999), "JPEG"),  # behind the end
    ],
    ids=["text", "negative", "negative-png", "negative-webp", "outside"],
)
def test_odd_exif_data_are_no_fault_of_a_picture(
    entry: bytes, kind: str, pipeline: ImagePipeline, recwarn: pytest.WarningsRecorder
) -> None:
    found = decode(pipeline, encoded(picture(), kind, exif=exif_data(entry, TURNED)))
    assert found.shape == (40, 30, 3)
    assert not recwarn.list


def chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def png_header(width: int, height: int) -> bytes:
    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(b"\0" * 9))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty image"),
        (b"no image at all", "undecodable image"),
        (encoded(picture())[:100], "undecodable image"),
        (encoded(picture(), "JPEG")[:300], "undecodable image"),
        (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", b"\0\0"), "undecodable image"),
        (encoded(picture(), "JPEG", exif=b"Exif\0\0II*\0"), None),
        (encoded(picture(), "EPS"), "undecodable image"),
        (encoded(picture(), "TIFF"), "undecodable image"),
        (encoded(picture(1, 1)), "image of one pixel's width or height"),
        (encoded(picture(40, 1)), "image of one pixel's width or height"),
        (png_header(30_000, 30_000), "image over input.max_pixels=100000000"),
        (png_header(10_001, 10_000), "image over input.max_pixels=100000000"),
    ],
    ids=range(12),
)
def test_bad_images_are_told_apart(
    content: bytes, reason: str | None, pipeline: ImagePipeline
) -> None:
    if reason is None:
        assert decode(pipeline, content).shape == (30, 40, 3)
        return
    with pytest.raises(BadSample) as caught:
        decode(pipeline, content)
    assert caught.value.reason == reason


def test_a_bomb_is_refused_before_it_is_decoded(
    pipeline: ImagePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("decoded"))
    with pytest.raises(BadSample, match=r"input\.max_pixels"):
        pipeline.decode({"png": png_header(10_001, 10_000)})


def test_the_limit_is_the_config_s_and_pillow_s_is_left_alone(tiny_config: Make) -> None:
    small = ImagePipeline(tiny_config("image", input={"max_pixels": 1199}))
    before = Image.MAX_IMAGE_PIXELS
    with pytest.raises(BadSample, match=r"input\.max_pixels"):
        decode(small, encoded(picture()))
    assert before == Image.MAX_IMAGE_PIXELS
    exact = ImagePipeline(tiny_config("image", input={"max_pixels": 1200}))
    assert decode(exact, encoded(picture())).shape == (30, 40, 3)


def test_a_sample_s_first_known_member_is_read(pipeline: ImagePipeline) -> None:
    sample = {"png": b"broken", "jpg": encoded(picture(), "JPEG")}
    assert pipeline.decode(sample).size == (40, 30)


def test_augmentation_depends_on_its_generator_only(pipeline: ImagePipeline) -> None:
    random.seed(1)
    torch.manual_seed(1)
    first = [pipeline.augment(picture(), np.random.default_rng(i)) for i in range(8)]
    states = random.getstate(), torch.get_rng_state()
    random.seed(2)
    torch.manual_seed(2)
    before = random.getstate(), torch.get_rng_state()
    again = [pipeline.augment(picture(), np.random.default_rng(i)) for i in range(8)]
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert len({example.tobytes() for example in first}) == 8
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    random.seed(1)
    torch.manual_seed(1)
    assert states[0] == random.getstate()
    assert torch.equal(states[1], torch.get_rng_state())


def test_examples_are_pixels_of_8_bits(pipeline: ImagePipeline) -> None:
    image = picture()
    for example in (pipeline.plain(image), pipeline.augment(image, np.random.default_rng(0))):
        assert example.shape == (3, 24, 32)
        assert example.dtype == np.uint8
    white = pipeline.plain(Image.new("RGB", (64, 64), "white"))
    assert (white == 255).all()
    assert pipeline.collate([white, white], None).inputs.dtype == torch.uint8


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_encoder_normalises_pixels_of_8_bits(dtype: torch.dtype, tiny_config: Make) -> None:
    config = tiny_config("image", input={"mean": [0.5, 0.25, 0.0], "std": [0.5, 0.25, 2.0]})
    encoder = build_encoder(config).to(dtype)
    pixels = torch.randint(0, 256, (2, 3, 24, 32), dtype=torch.uint8)
    before, unit = pixels.clone(), pixels.to(dtype) / 255
    channels = [(unit[:, 0] - 0.5) / 0.5, (unit[:, 1] - 0.25) / 0.25, unit[:, 2] / 2]
    expected = encoder.embed(torch.stack(channels, dim=1), None).x
    assert torch.equal(encoder.embed(pixels, None).x, expected)
    assert torch.equal(pixels, before)


def test_masks_have_their_count_and_come_from_their_keys(tiny_config: Make) -> None:
    config = tiny_config("image", input={"size": [112, 112]}, mask={"num_patches": 90})
    pipeline = ImagePipeline(config)
    examples, keys = [np.zeros((3, 112, 112), dtype=np.uint8)] * 32, row_keys(0, np.arange(32))
    batch = pipeline.collate(examples, keys, [str(i) for i in range(32)])
    assert batch.masks is not None
    counts = batch.masks.masked.sum(1)
    assert batch.masks.masked.shape == (32, 196)
    assert counts.max() <= 90
    assert counts.float().mean() > 87
    assert torch.equal(counts, batch.masks.weight.sum(1).long())
    alone = pipeline.collate(examples[:1], keys[5:6]).masks
    others = pipeline.collate(examples, row_keys(1, np.arange(32))).masks
    assert alone is not None
    assert others is not None
    assert torch.equal(alone.masked[0], batch.masks.masked[5])
    assert not torch.equal(others.masked, batch.masks.masked)
    assert pipeline.collate(examples, None).masks is None
    assert batch.lengths is None


def test_the_baseline_is_the_pixels(pipeline: ImagePipeline) -> None:
    example = pipeline.plain(picture())
    values = normalised(torch.from_numpy(example), pipeline.mean, pipeline.std)
    assert np.array_equal(pipeline.baseline(example), values.numpy().ravel())


def build_encoder(config: RunConfig) -> ImageEncoder:
    torch.manual_seed(0)
    return ImageEncoder(config)


@torch.no_grad()
def test_patches_go_row_by_row_behind_the_class_token(tiny_config: Make) -> None:
    encoder = build_encoder(tiny_config("image"))
    pixels = torch.zeros(1, 3, 24, 32)
    pixels[..., 8:16, 24:32] = 1.0  # second row, fourth column
    local = encoder.embed(pixels, None).x
    changed = (local - encoder.embed(torch.zeros_like(pixels), None).x).abs().sum(-1)
    assert changed[0].nonzero().flatten().tolist() == [7]
    masks = Masks.from_bool((torch.arange(12) == 7)[None])
    filled = encoder.fill(encoder.embed(pixels, None), masks)
    assert torch.equal(filled.x[0, 7], encoder.mask_token[0, 0])
    whole = encoder.contextualise(filled).x
    assert whole.shape == (1, 13, 16)
    assert torch.equal(whole[0, 0], encoder.class_token[0, 0])
    assert torch.equal(whole[:, 1:], filled.x)


@torch.no_grad()
def test_patches_drop_out_before_the_blocks(tiny_config: Make) -> None:
    encoder = build_encoder(tiny_config("image", model={"dropout": 0.5}))
    entered = encoder.enter(Tokens(torch.randn(2, 12, 16))).x
    assert 0.2 < float((entered == 0).float().mean()) < 0.8


@torch.no_grad()
def test_relative_positions_on_a_grid_that_is_not_square(tiny_config: Make) -> None:
    """BEiT's index: (row difference, column difference), then three for the class token."""
    encoder = build_encoder(tiny_config("image"))
    height, width = 3, 4
    table = encoder.relative_bias.relative_position_bias_table
    rows = (2 * height - 1) * (2 * width - 1)
    assert table.shape == (rows + 3, 4)
    table.copy_(torch.arange(float(table.numel())).view(table.shape))
    (bias,) = encoder.attention_biases(torch.arange(12)[None])
    assert bias.shape == (1, 4, 13, 13)
    for i in range(12):
        for j in range(12):
            down = i // width - j // width + height - 1
            right = i % width - j % width + width - 1
            assert torch.equal(bias[0, :, i + 1, j + 1], table[down * (2 * width - 1) + right])
    assert torch.equal(bias[0, :, 0, 1:], table[rows][:, None].expand(4, 12))
    assert torch.equal(bias[0, :, 1:, 0], table[rows + 1][:, None].expand(4, 12))
    assert torch.equal(bias[0, :, 0, 0], table[rows + 2])


@torch.no_grad()
def test_every_block_may_have_a_table_of_its_own(tiny_config: Make) -> None:
    encoder = build_encoder(tiny_config("image", encoder={"positions": "block_relative"}))
    tables = [part.relative_position_bias_table for part in encoder.relative_bias]
    for number, table in enumerate(tables, start=1):
        assert not table.any()
        table.fill_(number)
    biases = encoder.attention_biases(torch.arange(12)[None])
    assert [bias.unique().tolist() for bias in biases] == [[1.0], [2.0], [3.0]]


# of fairseq, commit 3d262bb25690e4eb2e7d3c1309b1e9c406ca4b99: width 8, patches 1, 3 and 5 of 3 x 3
SINCOS = {
    0: [0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0],
    1: [0.8414709848, 0.0099998333, 0.5403023059, 0.9999500004, 0.0, 0.0, 1.0, 1.0],
    3: [0.0, 0.0, 1.0, 1.0, 0.8414709848, 0.0099998333, 0.5403023059, 0.9999500004],
}


def test_fixed_positions_are_the_original_s() -> None:
    table = sincos((3, 3), 8)
    assert table.shape == (1, 9, 8)
    for place, expected in SINCOS.items():
        assert table[0, place].tolist() == pytest.approx(expected, abs=1e-7)


def test_fixed_positions_tell_column_and_row() -> None:
    table = sincos((2, 5), 12)[0].view(2, 5, 2, 6)  # rows, columns, halves
    assert torch.equal(table[0, :, 0], table[1, :, 0])
    assert torch.equal(table[:, 0, 1], table[:, 4, 1])
    assert len({tuple(vector.tolist()) for vector in table.reshape(10, 12)}) == 10
    torch.testing.assert_close(table[:, :2, 1, :], table[:, 0:1, 1].expand(2, 2, 6))
    torch.testing.assert_close(table[0, :2, 0], table[:2, 0, 1])


@torch.no_grad()
def test_positions_are_added_to_patches_not_to_class_tokens(tiny_config: Make) -> None:
    for kind in ("learned", "sincos"):
        changes = {"positions": kind, "num_extra_tokens": 2, "context_norm": True}
        encoder = build_encoder(tiny_config("image", encoder=changes))
        local = encoder.embed(torch.randn(2, 3, 24, 32), None)
        located = encoder.locate(local)
        assert torch.equal(located.x, local.x + encoder.positions)
        entered = encoder.enter(located).x
        first = torch.cat([encoder.class_token.expand(2, 2, 16), located.x], dim=1)
        torch.testing.assert_close(entered, torch.nn.functional.layer_norm(first, (16,), eps=1e-5))
        trained = {name for name, _ in encoder.named_parameters()}
        assert ("positions" in trained) == (kind == "learned")
        assert "positions" in encoder.state_dict() or kind == "sincos"
        assert encoder.attention_biases(torch.arange(12)[None]) == ()


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize(
    ("mask", "masked"),
    [
        ({"kind": "squares", "mask_prob": 0.8}, 196 - 39),
        ({"kind": "squares", "mask_prob": 0.5, "inverse_mask": False, "mask_length": 2}, 98),
        ({"kind": "blocks", "num_patches": 90}, None),
    ],
)
def test_each_sample_has_several_masks(
    mask: dict[str, Any], masked: int | None, count: int, tiny_config: Make
) -> None:
    """The first of them is that of a run with one."""
    examples, keys = [np.zeros((3, 112, 112), dtype=np.uint8)] * 5, row_keys(0, np.arange(5))
    found = []
    for num_masks in (count, 1):
        given = {**mask, "num_masks": num_masks}
        config = tiny_config("image", input={"size": [112, 112]}, mask=given)
        batch = ImagePipeline(config).collate(examples, keys)
        assert len(batch.inputs) == 5
        assert batch.masks is not None
        found.append(batch.masks.masked)
    several, one = found
    assert several.shape == (5 * count, 196)
    assert torch.equal(several[::count], one)
    assert len({tuple(row.tolist()) for row in several}) == 5 * count
    if masked is not None:
        assert (several.sum(1) == masked).all()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"input": {"size": [24, 30]}}, r"input\.size: \[24, 30\].*encoder\.patch_size 8"),
        ({"input": {"size": [24]}}, r"input\.size: \[24\]"),
        ({"input": {"size": [0, 24]}}, r"input\.size: \[0, 24\]"),
        ({"encoder": {"patch_size": 0}}, r"encoder\.patch_size: 0"),
        ({"mask": {"num_patches": 12}}, r"mask\.num_patches: 12 of 12 patches.*1 to 11"),
        ({"mask": {"num_patches": 0}}, r"mask\.num_patches: 0 of 12"),
        ({"mask": {"min_aspect": 0.0}}, r"mask\.min_aspect: 0\.0"),
        ({"mask": {"min_aspect": 1.5}}, r"mask\.min_aspect: 1\.5"),
        ({"mask": {"min_block": 0}}, r"mask\.min_block: 0"),
        ({"mask": {"max_block": -1}}, r"mask\.max_block: -1"),
        ({"input": {"crop_scale": [0.5, 0.1]}}, r"input\.crop_scale: \(0\.5, 0\.1\)"),
        ({"input": {"crop_ratio": [0.0, 1.0]}}, r"input\.crop_ratio: \(0\.0, 1\.0\)"),
        ({"input": {"std": [0.2, 0.2, 0.0]}}, r"input\.std: \(0\.2, 0\.2, 0\.0\)"),
        ({"input": {"flip": 1.5}}, r"input\.flip: 1\.5"),
        ({"mask": {"num_masks": 0}}, r"mask\.num_masks: 0 must be 1 or more"),
        (
            {"mask": {"kind": "squares", "mask_length": 4}},
            r"mask\.mask_length: squares of 4 patches do not fit a grid of 3 x 4; choose 1 to 3",
        ),
        ({"mask": {"kind": "squares", "mask_length": 0}}, r"mask\.mask_length: squares of 0"),
        (
            {"mask": {"kind": "squares", "mask_prob": 1.0}},
            r"mask\.mask_prob: 1\.0 would mask ev",
        ),
        ({"mask": {"kind": "squares", "mask_prob": 0.0}}, r"mask\.mask_prob: 0\.0 would mask noth"),
        (
            {"mask": {"kind": "squares", "mask_prob": 0.95}},
            r"mask\.mask_prob: 0\.95 would mask 12 of 12 patches.*something to see",
        ),
        (
            {"mask": {"kind": "squares", "mask_prob": 0.05, "inverse_mask": False}},
            r"mask\.mask_prob: 0\.05 would mask 0 of 12 patches.*something to predict",
        ),
        (
            {"strategy": "visible"},
            r"input\.size: \[24, 32\] gives a grid that is not square.*strategy=dense",
        ),
        (
            {"encoder": {"positions": "sincos"}, "model": {"width": 18, "heads": 3}},
            r"model\.width: 18 must be a multiple of 4 for encoder\.positions=sincos",
        ),
        ({"encoder": {"num_extra_tokens": -1}}, r"encoder\.num_extra_tokens: -1"),
        (
            {"encoder": {"num_extra_tokens": 2}},
            r"encoder\.num_extra_tokens: 2 .*encoder\.positions=relative.*choose 1 or 0",
        ),
        (
            {"encoder": {"num_extra_tokens": 2, "positions": "block_relative"}},
            r"encoder\.num_extra_tokens: 2 .*encoder\.positions=block_relative",
        ),
        (
            {"objective": {"cls_loss": 0.1}, "encoder": {"num_extra_tokens": 0}},
            r"objective\.cls_loss: 0\.1 .*encoder\.num_extra_tokens",
        ),
        ({"encoder": {"prenet_depth": -1}}, r"encoder\.prenet_depth: -1"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    changes: dict[str, Any], words: str, tiny_config: Make
) -> None:
    with pytest.raises(UserError, match=words):
        tiny_config("image", **changes)
