"""Audio: bytes to waveforms, lengths, masks; padding never reaches a valid frame."""

import io
import re
import struct
import tracemalloc
import wave
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from selfdistill.config import RunConfig
from selfdistill.errors import BadSample, UserError
from selfdistill.masking import row_keys
from selfdistill.modalities.audio import data
from selfdistill.modalities.audio.config import CONV_LAYERS
from selfdistill.modalities.audio.data import AudioPipeline
from selfdistill.modalities.audio.encoder import AudioEncoder, frame_count, receptive_field
from selfdistill.modalities.audio.spectrogram import log_mel
from selfdistill.types import Masks, Tokens

Make = Callable[..., RunConfig]


def tone(seconds: float = 0.5, rate: int = 16_000, hertz: float = 440.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)


def encoded(
    waveform: np.ndarray, kind: str = "WAV", subtype: str = "PCM_16", rate: int = 16_000
) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, rate, format=kind, subtype=subtype)
    return buffer.getvalue()


@pytest.fixture
def pipeline(tiny_config: Make) -> AudioPipeline:
    return AudioPipeline(tiny_config("audio"))


def build_encoder(config: RunConfig) -> AudioEncoder:
    torch.manual_seed(0)
    return AudioEncoder(config)


@pytest.mark.parametrize(
    ("kind", "subtype", "error"),
    [
        ("WAV", "PCM_16", 1e-4),
        ("WAV", "PCM_24", 1e-6),
        ("WAV", "PCM_U8", 1e-2),
        ("WAV", "FLOAT", 1e-7),
        ("FLAC", "PCM_16", 1e-4),
        ("OGG", "VORBIS", 0.1),
        ("OGG", "OPUS", 0.1),
        ("MP3", "MPEG_LAYER_III", 0.1),
    ],
)
def test_formats_decode(kind: str, subtype: str, error: float, pipeline: AudioPipeline) -> None:
    found = pipeline.decode({"wav": encoded(tone(), kind, subtype)})
    assert found.dtype == np.float32
    assert len(found) == pytest.approx(8000, abs=0 if error < 0.1 else 1200)
    middle = slice(2000, 6000)
    assert np.abs(found[middle]).max() == pytest.approx(0.5, abs=0.05)
    if error < 0.1:
        assert np.abs(found - tone()).max() < error


def test_the_preferred_member_is_read(pipeline: AudioPipeline) -> None:
    sample = {"wav": b"broken", "flac": encoded(tone(), "FLAC")}
    assert len(pipeline.decode(sample)) == 8000


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_other_rates_and_stereo_become_16_khz_mono(rate: int, pipeline: AudioPipeline) -> None:
    stereo = np.stack([tone(rate=rate), np.zeros(int(0.5 * rate))], axis=1)
    found = pipeline.decode({"wav": encoded(stereo, rate=rate)})
    assert len(found) == 8000
    middle = slice(1000, 7000)
    assert np.abs(found[middle] - tone()[middle] / 2).max() < 0.01


def test_other_rates_are_refused_where_resampling_is_off(tiny_config: Make) -> None:
    pipeline = AudioPipeline(tiny_config("audio", input={"resample": False}))
    assert len(pipeline.decode({"wav": encoded(tone())})) == 8000
    with pytest.raises(BadSample, match=r"input\.resample is off \(8000 Hz\)"):
        pipeline.decode({"wav": encoded(tone(rate=8000), rate=8000)})


def announcing(field: int, value: int) -> bytes:
    """A wav file whose header says something else at byte ``field``."""
    content = bytearray(encoded(tone()))
    content[field : field + 4] = struct.pack("<I", value)
    return bytes(content)


NAN = np.full(8000, 0.1)
NAN[17] = np.nan
INFINITE = np.full(8000, 0.1)
INFINITE[17] = np.inf
TOO_SHORT = "audio shorter than the feature encoder or input.min_seconds needs"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty audio"),
        (b"no audio at all", "undecodable audio"),
        (encoded(tone(), "FLAC")[:30], "undecodable audio"),
        (encoded(NAN, subtype="FLOAT"), "audio with NaN or infinity"),
        (encoded(INFINITE, subtype="FLOAT"), "audio with NaN or infinity"),
        (encoded(np.zeros(0)), TOO_SHORT),
        (encoded(np.zeros(0), rate=8000), TOO_SHORT),
        (encoded(np.zeros(1)), TOO_SHORT),
        (announcing(24, 2**31 - 1), "sampling rate outside 1000 to 400000 Hz"),
        (announcing(24, 1), "sampling rate outside 1000 to 400000 Hz"),
    ],
    ids=range(10),
)
def test_bad_clips_are_told_apart(content: bytes, reason: str, pipeline: AudioPipeline) -> None:
    with pytest.raises(BadSample) as caught:
        pipeline.decode({"wav": content})
    assert caught.value.reason == reason
    assert " at 0x" not in caught.value.detail  # the same bytes say the same


WAV_CUT = "WAV that holds more than its header announces: it is still being written, or was not"


def chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content


def with_chunks(before: bytes = b"", after: bytes = b"", values: int = 8000) -> bytes:
    """A wav file of 8 bits with other chunks around its audio."""
    content = encoded(tone()[:values], subtype="PCM_U8")
    audio = content.index(b"data")
    return content[:audio] + before + content[audio : audio + 8 + values] + after


def unclosed() -> bytes:
    """As ``wave`` leaves a file whose writer was killed; its header is of the first block."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", "not compressed"))
        for block in np.split((tone() * 32767).astype("<i2"), 8):
            file.writeframesraw(block.tobytes())
        return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "detail"),
    [
        (unclosed(), "2,000 bytes of audio announced, 16,000 there"),
        (announcing(40, 0), "0 bytes of audio announced, 16,000 there"),
        (announcing(40, 7_998), "7,998 bytes of audio announced, 16,000 there"),
        (
            with_chunks(chunk(b"bext", bytes(602)), chunk(b"LIST", b"INFO") + bytes(9_000)),
            "8,000 bytes of audio announced, 17,000 there",
        ),
        (with_chunks(after=bytes(70_000)), "8,000 bytes of audio announced, 78,000 there"),
    ],
    ids=range(5),
)
def test_a_wav_that_holds_more_than_it_announces_is_refused(
    content: bytes, detail: str, pipeline: AudioPipeline
) -> None:
    for read in (pipeline.decode, data.seconds):
        with pytest.raises(BadSample, match=WAV_CUT) as caught:
            read({"wav": content})
        assert caught.value.detail == detail


@pytest.mark.parametrize(
    ("content", "length"),
    [
        (announcing(40, 2**32 - 1), 8000),
        (announcing(40, 2**31 - 4096), 8000),
        (announcing(40, 16_001), 8000),
        (announcing(4, 8)[:40] + bytes(4) + encoded(tone())[44:], 8000),  # libsndfile reads it all
        (with_chunks(chunk(b"JUNK", bytes(3_000)) + chunk(b"bext", bytes(602))), 8000),
        (with_chunks(after=chunk(b"LIST", b"INFO") + chunk(b"id3 ", bytes(90_000))), 8000),
        (with_chunks(after=chunk(b"LIST", b"INFOx") + b"\0" + chunk(b"id3 ", bytes(90_000))), 8000),
        (with_chunks(after=b"\0" + chunk(b"id3 ", bytes(90_000)), values=7999), 7999),
        (with_chunks(after=chunk(b"id3 ", bytes(90_000)), values=7999), 7999),  # without its pad
        (with_chunks(values=7999), 7999),
        (with_chunks(after=bytes(4_096)), 8000),
        (with_chunks(after=chunk(b"TINY", b"") * 100 + bytes(90_000)), 8000),
        *((encoded(tone(), kind), 8000) for kind in ("W64", "RF64", "AIFF", "WAVEX")),
    ],
    ids=range(16),
)
def test_other_chunks_and_sizes_of_wavs_do_no_harm(
    content: bytes, length: int, pipeline: AudioPipeline
) -> None:
    assert len(pipeline.decode({"wav": content})) == length


ID3 = b"ID3\x03\0\0\0\0\x01\x0a" + bytes(138)


@pytest.mark.parametrize(
    ("kind", "subtype", "between"),
    [
        ("MP3", "MPEG_LAYER_III", b""),
        ("MP3", "MPEG_LAYER_III", ID3),
        ("OGG", "VORBIS", b""),
        ("OGG", "OPUS", b""),
    ],
)
@pytest.mark.parametrize("rate", [8_000, 16_000, 48_000])
def test_one_recording_behind_another_is_refused(
    rate: int, kind: str, subtype: str, between: bytes, pipeline: AudioPipeline
) -> None:
    """libsndfile would read the first alone."""
    parts = [encoded(tone(rate=rate), kind, subtype, rate) for _ in range(2)]
    for read in (pipeline.decode, data.seconds):
        with pytest.raises(BadSample, match=f"^{kind[:1]}.* joined from several"):
            read({kind.lower(): between + between.join(parts)})


def test_an_mp3_of_several_bit_rates_that_never_told_its_length_is_refused(
    pipeline: AudioPipeline,
) -> None:
    """libsndfile would take the rate of its beginning for that of the whole."""
    noise = 0.3 * np.random.default_rng(0).normal(size=8_000)
    content = encoded(np.concatenate([noise, tone(10.0)]), "MP3", "MPEG_LAYER_III")
    second = content.index(content[:2], content.index(b"Xing") + 120)  # behind the tables there
    with pytest.raises(BadSample, match="never told its length") as caught:
        pipeline.decode({"mp3": content[second:]})
    assert re.fullmatch(r"\d\.\d\d seconds announced, 10\.\d\d there", caught.value.detail)


@pytest.mark.parametrize(
    ("before", "after"),
    [(ID3, b""), (b"", b"TAG" + bytes(125)), (b"", b"APETAGEX" + bytes(90_000))],
    ids=["ID3v2", "ID3v1", "a picture"],
)
def test_tags_of_an_mp3_do_no_harm(before: bytes, after: bytes, pipeline: AudioPipeline) -> None:
    content = encoded(tone(), "MP3", "MPEG_LAYER_III")
    assert len(pipeline.decode({"mp3": before + content + after})) == 8000


def test_the_shortest_clip_gives_a_frame_to_mask_and_one_to_see(pipeline: AudioPipeline) -> None:
    shortest = pipeline.min_samples
    assert frame_count(shortest, pipeline.conv_layers) == 2
    assert frame_count(shortest - 1, pipeline.conv_layers) == 1
    assert len(pipeline.decode({"wav": encoded(tone()[:shortest])})) == shortest
    needed = f"at least {shortest / pipeline.config.sampling_rate:.4g} needed"
    with pytest.raises(BadSample, match=rf"\(0\.\d+ seconds, {needed}\)$"):
        pipeline.decode({"wav": encoded(tone()[: shortest - 1])})


def test_the_base_encoder_needs_720_samples(tiny_config: Make) -> None:
    config = tiny_config("audio", encoder={"conv_layers": CONV_LAYERS})
    pipeline = AudioPipeline(config)
    assert (receptive_field(CONV_LAYERS), pipeline.min_samples) == (400, 720)
    for length in (0, 1, 399, 400, 719):
        with pytest.raises(BadSample, match=TOO_SHORT):
            pipeline.decode({"wav": encoded(np.full(length, 0.1))})


def test_min_seconds(tiny_config: Make) -> None:
    pipeline = AudioPipeline(tiny_config("audio", input={"min_seconds": 0.25}))
    assert len(pipeline.decode({"wav": encoded(tone(0.25))})) == 4000
    with pytest.raises(BadSample, match=TOO_SHORT):
        pipeline.decode({"wav": encoded(tone(0.2))})


def test_long_clips_are_cropped_at_random_in_training_only(tiny_config: Make) -> None:
    pipeline = AudioPipeline(tiny_config("audio", input={"max_seconds": 0.1, "normalize": False}))
    raw = np.arange(8000, dtype=np.float32)
    starts = [pipeline.augment(raw, np.random.default_rng(i))[0] for i in range(50)]
    assert min(starts) < 1000
    assert max(starts) > 5400
    assert max(starts) <= 8000 - 1600
    assert len(set(starts)) > 40
    crop = pipeline.augment(raw, np.random.default_rng(3))
    assert np.array_equal(crop, np.arange(starts[3], starts[3] + 1600))
    assert np.array_equal(pipeline.plain(raw), raw[:1600])
    assert np.array_equal(pipeline.augment(raw[:500], np.random.default_rng(0)), raw[:500])


def test_a_huge_clip_is_read_up_to_a_limit(
    pipeline: AudioPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "MAX_VALUES", 5000)
    assert len(pipeline.decode({"wav": encoded(tone())})) == 5000
    stereo = np.stack([tone(), tone()], axis=1)
    assert len(pipeline.decode({"wav": encoded(stereo)})) == 2500


def test_a_length_that_the_header_makes_up_does_no_harm(pipeline: AudioPipeline) -> None:
    content = bytearray(encoded(tone(), "FLAC"))
    content[21] |= 0x0F  # 2**36 - 1 samples
    content[22:26] = b"\xff" * 4
    with pytest.raises(BadSample, match="undecodable audio"):
        pipeline.decode({"flac": bytes(content)})
    content[21] &= 0xF0  # none
    content[22:26] = bytes(4)
    for read in (pipeline.decode, data.seconds):
        with pytest.raises(BadSample, match="FLAC without its length, as written to a pipe"):
            read({"flac": bytes(content)})


@pytest.mark.parametrize("scale", [0.01, 1.0, 3e38])
def test_examples_have_zero_mean_and_unit_deviation(scale: float, pipeline: AudioPipeline) -> None:
    raw = (scale * (tone() + 0.25)).astype(np.float32)
    example = pipeline.plain(raw)
    assert example.dtype == np.float32
    assert example.mean() == pytest.approx(0, abs=1e-4)
    assert example.std() == pytest.approx(1, abs=0.01)


def test_silence_stays_silence(pipeline: AudioPipeline) -> None:
    assert not pipeline.plain(np.full(8000, 0.3, dtype=np.float32)).any()


def test_frame_count_is_what_the_convolutions_give(tiny_config: Make) -> None:
    layers = [[4, 10, 5], [4, 3, 2], [4, 3, 3], [4, 2, 2]]
    encoder = build_encoder(tiny_config("audio", encoder={"conv_layers": layers}))
    for length in range(receptive_field(layers), 700):
        frames = encoder.embed(torch.zeros(1, length), None).x.shape[1]
        assert frame_count(length, layers) == frames
        assert frame_count(torch.tensor([length]), layers).item() == frames
    shorter = range(receptive_field(layers))
    assert all(frame_count(length, layers) < 1 for length in shorter)


@torch.no_grad()
@pytest.mark.parametrize("position_width", [10, 8])
def test_a_row_is_encoded_as_if_alone(position_width: int, tiny_config: Make) -> None:
    config = tiny_config("audio", encoder={"position_width": position_width})
    encoder = build_encoder(config)
    for parameter in encoder.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    lengths = torch.tensor([400, 207, 120])
    inputs = torch.randn(3, 400)
    inputs[torch.arange(400) >= lengths[:, None]] = 9.0  # must not matter
    tokens = encoder.embed(inputs, lengths)
    found = encoder.contextualise(tokens)
    assert found.padding is not None
    for row, length in enumerate(lengths.tolist()):
        alone = encoder.contextualise(encoder.embed(inputs[row : row + 1, :length], None))
        valid = ~found.padding[row]
        assert valid.sum() == alone.x.shape[1]
        torch.testing.assert_close(found.x[row, valid], alone.x[0], atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("way", ["fill", "keep"])
def test_features_drop_out_where_they_are_hidden(way: str, tiny_config: Make) -> None:
    """By either strategy; what stays is twice as large."""
    encoder = build_encoder(tiny_config("audio", encoder={"input_dropout": 0.5}))
    for parameter in encoder.positions.parameters():
        parameter.zero_()
    local = Tokens(torch.ones(1, 40, 16))
    masks = Masks.from_bool(torch.arange(40)[None] < 10)
    seen = getattr(encoder, way)(local, masks).x[0, -30:]
    assert seen.unique().tolist() == [0, 2]


@torch.no_grad()
def test_frames_drop_out_before_the_blocks(tiny_config: Make) -> None:
    encoder = build_encoder(tiny_config("audio", model={"dropout": 0.5}))
    entered = encoder.enter(Tokens(torch.randn(2, 9, 16))).x
    assert 0.2 < float((entered == 0).float().mean()) < 0.8


def test_batches_tell_lengths_only_where_they_differ(pipeline: AudioPipeline) -> None:
    examples = [np.ones(n, dtype=np.float32) for n in (500, 300)]
    batch = pipeline.collate(examples, row_keys(0, np.arange(2)), ["a", "b"])
    assert batch.inputs.shape == (2, 500)
    assert not batch.inputs[1, 300:].any()
    assert batch.lengths is not None
    assert batch.lengths.tolist() == [500, 300]
    assert list(batch.keys) == ["a", "b"]
    assert pipeline.collate(examples[:1], None).lengths is None
    assert pipeline.collate(examples, None).masks is None


def test_masks_leave_padding_alone_and_come_from_their_keys(tiny_config: Make) -> None:
    pipeline = AudioPipeline(tiny_config("audio", mask={"equal_counts": False}))
    examples = [np.ones(n, dtype=np.float32) for n in (2000, 700)]
    keys = row_keys(0, np.arange(2))
    masks = pipeline.collate(examples, keys).masks
    assert masks is not None
    frames = frame_count(700, pipeline.conv_layers)
    assert masks.masked.shape == (2, frame_count(2000, pipeline.conv_layers))
    assert not masks.masked[1, frames:].any()
    assert masks.masked.any(dim=1).all()
    alone = pipeline.collate(examples[1:], keys[1:]).masks
    assert alone is not None
    assert torch.equal(alone.masked[0], masks.masked[1, :frames])
    others = pipeline.collate(examples, row_keys(1, np.arange(2))).masks
    assert others is not None
    assert not torch.equal(others.masked, masks.masked)


def test_equal_counts(tiny_config: Make) -> None:
    pipeline = AudioPipeline(tiny_config("audio", mask={"equal_counts": True}))
    examples = [np.ones(n, dtype=np.float32) for n in (2000, 700, 1500)]
    masks = pipeline.collate(examples, row_keys(0, np.arange(3))).masks
    assert masks is not None
    assert len(set(masks.masked.sum(1).tolist())) == 1
    assert masks.weight.all()


@pytest.mark.parametrize("kind", ["spans", "painted"])
def test_each_sample_has_several_masks(kind: str, tiny_config: Make) -> None:
    """The first of them is that of a run with one."""
    lengths, keys, found = (2000, 700), row_keys(0, np.arange(2)), {}
    for num_masks in (4, 1):
        mask = {"kind": kind, "num_masks": num_masks, "mask_prob": 0.5}
        pipeline = AudioPipeline(tiny_config("audio", mask=mask))
        batch = pipeline.collate([np.ones(n, dtype=np.float32) for n in lengths], keys)
        assert len(batch.inputs) == 2
        assert batch.masks is not None
        found[num_masks] = batch.masks
    masked, frames = found[4].masked, [frame_count(n, pipeline.conv_layers) for n in lengths]
    assert torch.equal(masked[::4], found[1].masked)
    assert len({tuple(row.tolist()) for row in masked}) == 8
    assert not masked[4:, frames[1] :].any()
    assert found[4].filler is not None
    seen = (~found[4].filler).sum(1)
    valid = torch.tensor(frames).repeat_interleave(4)
    assert torch.equal(seen + masked.sum(1), valid)
    if kind == "painted":
        assert torch.equal(masked.sum(1), valid // 2)


@pytest.mark.parametrize("length", [110, 400, 8000])
@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_the_baseline_is_finite(length: int, scale: float, pipeline: AudioPipeline) -> None:
    features = pipeline.baseline((scale * tone()[:length]).astype(np.float32))
    assert features.shape == (80,)
    assert features.dtype == np.float32
    assert np.isfinite(features).all()


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
def test_the_spectrogram_peaks_at_the_tone(rate: int) -> None:
    top = 2595 * np.log10(1 + rate / 2 / 700)
    for hertz in (500.0, 1500.0, 3000.0):
        bands = log_mel(tone(0.5, rate, hertz), rate)
        expected = 2595 * np.log10(1 + hertz / 700) / top * 41 - 1
        assert bands.shape[1] == 40
        assert bands.mean(0).argmax() == pytest.approx(expected, abs=1)


def test_the_spectrogram_of_a_long_clip_takes_little_memory() -> None:
    """Samples of a set are drawn as they are, and one may be an hour."""
    waveform = np.zeros(180 * 16_000, np.float32)
    tracemalloc.start()
    try:
        bands = log_mel(waveform, 16_000)
        assert tracemalloc.get_traced_memory()[1] < 60e6
    finally:
        tracemalloc.stop()
    assert bands.shape == (17_998, 40)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"encoder": {"conv_layers": [[8, 10]]}}, r"encoder\.conv_layers: \[8, 10\]"),
        ({"encoder": {"conv_layers": [[8, 10, 0]]}}, r"encoder\.conv_layers: \[8, 10, 0\]"),
        ({"encoder": {"conv_layers": []}}, r"encoder\.conv_layers: \[\]"),
        ({"encoder": {"position_groups": 5}}, r"encoder\.position_groups: 5.*model\.width 16"),
        ({"encoder": {"position_groups": 0}}, r"encoder\.position_groups: 0"),
        ({"encoder": {"position_depth": 0}}, r"encoder\.position_depth: 0"),
        ({"mask": {"mask_prob": 1.0}}, r"mask\.mask_prob: 1\.0 would mask everything"),
        ({"mask": {"mask_prob": 0.0}}, r"mask\.mask_prob: 0\.0 would mask nothing"),
        ({"mask": {"mask_length": 0}}, r"mask\.mask_length: 0"),
        ({"input": {"min_seconds": 9.0, "max_seconds": 3.0}}, r"input\.min_seconds: 9\.0.*3\.0"),
        ({"input": {"max_seconds": 0.001}}, r"input\.max_seconds: 0\.001"),
        ({"input": {"sampling_rate": 0}}, r"input\.sampling_rate: 0"),
        ({"mask": {"num_masks": 0}}, r"mask\.num_masks: 0 must be 1 or more"),
        (
            {"mask": {"kind": "painted", "mask_prob": 1.0}},
            r"mask\.mask_prob: 1\.0 would mask every",
        ),
        ({"mask": {"kind": "painted", "mask_length": 0}}, r"mask\.mask_length: 0"),
        ({"objective": {"cls_loss": 0.1}}, r"objective\.cls_loss: 0\.1 needs a class token"),
        ({"encoder": {"prenet_depth": -1}}, r"encoder\.prenet_depth: -1"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    changes: dict[str, Any], words: str, tiny_config: Make
) -> None:
    with pytest.raises(UserError, match=words):
        tiny_config("audio", **changes)
