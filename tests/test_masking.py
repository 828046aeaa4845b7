"""Masks against the originals' recorded statistics, and what holds for every mask."""

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from selfdistill import masking
from selfdistill.masking import block_masks, row_keys, span_masks, uniform

RECORDED = json.loads((Path(__file__).parent / "golden" / "mask_stats.json").read_text())
SPEECH: Any = {"prob": 0.65, "length": 10}
TEXT: Any = {"prob": 0.35, "length": 4, "cut_at_end": True}


def keys(n: int, first: int = 0) -> np.ndarray:
    return row_keys(17, np.arange(first, first + n))


def run_length_shares(masked: np.ndarray) -> np.ndarray:
    """Share of each length among the runs of masked tokens, [T + 1]."""
    edges = np.diff(np.pad(masked, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    runs = np.nonzero(edges == -1)[1] - np.nonzero(edges == 1)[1]
    return np.bincount(runs, minlength=masked.shape[1] + 1) / len(runs)


def assert_like_recorded(samples: list[np.ndarray], recorded: dict[str, Any], batch: int) -> None:
    """``samples`` are three independent draws, each [rows, valid tokens] as were recorded."""
    rows, tokens, expected = recorded["rows"], recorded["tokens"], recorded["fraction"]
    masked = samples[0]
    assert masked.shape == (rows, tokens)
    # rows of a batch share one count, so the batches are the independent draws; both sides vary
    error = 4 * expected["std"] * math.sqrt(2 * batch / rows)
    assert masked.mean() == pytest.approx(expected["mean"], rel=0.01, abs=error)
    assert masked.mean(1).min() == pytest.approx(expected["min"], abs=2 * expected["std"])
    assert masked.mean(1).max() == pytest.approx(expected["max"], abs=2 * expected["std"])

    # The total variation distance between two samples of this size from one generator is its
    # sampling noise; the runs within a batch are not independent, so it is measured.
    shares = np.zeros(tokens + 1)
    shares[[int(n) for n in recorded["run_lengths"]]] = list(recorded["run_lengths"].values())
    ours = [run_length_shares(sample) for sample in samples]
    noise = max(np.abs(ours[i] - ours[i - 1]).sum() for i in range(3))
    assert np.abs(ours[0] - shares).sum() < 1.5 * noise

    for got, key in ((masked[:, :5], "first_positions"), (masked[:, -12:], "last_positions")):
        profile = np.array(recorded[key])
        errors = np.sqrt(2 * batch**0.5 * profile * (1 - profile) / rows)
        assert (np.abs(got.mean(0) - profile) <= 4 * errors).all()


def speech(first: int, rows: int, lengths: np.ndarray, total: int) -> np.ndarray:
    """Masks of batches with these lengths, [batches, B, total]."""
    batches = np.split(row_keys(17, np.arange(first, first + rows)), rows // len(lengths))
    return np.stack([span_masks(k, lengths, total, equal_counts=True, **SPEECH) for k in batches])


@pytest.mark.parametrize("batch", [1, 8, 16])
@pytest.mark.parametrize("case", [0, 1, 2])
def test_speech_masks_follow_the_recording(batch: int, case: int) -> None:
    recorded = RECORDED["speech"][str(batch)][case]
    rows, tokens = recorded["rows"], recorded["tokens"]
    drawn = [speech(i * rows, rows, np.full(batch, tokens), tokens) for i in range(3)]
    assert (drawn[0].sum(2) == drawn[0].sum(2)[:, :1]).all()
    assert not drawn[0][..., -1].any()
    assert_like_recorded([sample.reshape(rows, tokens) for sample in drawn], recorded, batch)


def test_padded_speech_masks_follow_the_recording() -> None:
    lengths = np.array([row["tokens"] for row in RECORDED["speech_padded"]])
    drawn = [speech(i * 2000, 2000, lengths, 250) for i in range(3)]
    assert (drawn[0].sum(2) == drawn[0].sum(2)[:, :1]).all()
    for i, row in enumerate(RECORDED["speech_padded"]):
        assert not drawn[0][:, i, row["tokens"] :].any()
        assert_like_recorded([sample[:, i, : row["tokens"]] for sample in drawn], row, 1)


@pytest.mark.parametrize("recorded", RECORDED["text"], ids=lambda r: str(r["tokens"]))
def test_text_masks_follow_the_recording(recorded: dict[str, Any]) -> None:
    rows, tokens = recorded["rows"], recorded["tokens"]
    drawn = [
        span_masks(keys(rows, i * rows), np.full(rows, tokens), tokens, **TEXT) for i in range(3)
    ]
    assert_like_recorded(drawn, recorded, 1)


def test_a_mask_does_not_depend_on_its_batch() -> None:
    lengths = np.random.default_rng(0).integers(2, 60, 50)
    for settings in (SPEECH, TEXT):
        together = span_masks(keys(50), lengths, 60, **settings)
        equal = span_masks(keys(50), lengths, 60, equal_counts=True, **settings)
        assert not (equal & ~together).any()
        for i, n in enumerate(lengths):
            alone = span_masks(keys(1, i), lengths[i : i + 1], int(n), **settings)[0]
            np.testing.assert_array_equal(together[i, :n], alone)
    blocks = block_masks(keys(50), (14, 14), count=120, min_block=16)
    for i in range(50):
        alone = block_masks(keys(1, i), (14, 14), count=120, min_block=16)
        np.testing.assert_array_equal(blocks[i], alone[0])
    assert len({mask.tobytes() for mask in blocks}) == 50


@pytest.mark.parametrize("equal_counts", [False, True])
@pytest.mark.parametrize("cut_at_end", [False, True])
@pytest.mark.parametrize(("prob", "length"), [(0.65, 10), (0.35, 4), (1.0, 1), (0.9, 3), (0.01, 2)])
@pytest.mark.parametrize("min_spans", [1, 20])
def test_short_rows(
    prob: float, length: int, min_spans: int, cut_at_end: bool, equal_counts: bool
) -> None:
    lengths = np.arange(2, 13).repeat(40)
    settings: Any = {"min_spans": min_spans, "cut_at_end": cut_at_end, "equal_counts": equal_counts}
    masked = span_masks(keys(len(lengths)), lengths, 15, prob=prob, length=length, **settings)
    counts = masked.sum(1)
    assert (counts >= 1).all()
    assert (counts < lengths).all()
    assert not masked[np.arange(15) >= lengths[:, None]].any()
    if equal_counts:
        assert len(set(counts)) == 1


def test_starts_of_a_row_with_room_for_one_span() -> None:
    # 11 tokens, one span of 10: fewer places than the original needs, so it starts at 0 or 1
    masked = span_masks(keys(400), np.full(400, 11), 11, **SPEECH)
    begins_at_0 = masked[:, 0] & masked[:, :10].all(1) & ~masked[:, 10]
    begins_at_1 = ~masked[:, 0] & masked[:, 1:].all(1)
    assert (begins_at_0 ^ begins_at_1).all()
    assert begins_at_0.mean() == pytest.approx(0.5, abs=4 * 0.025)


def test_a_fully_covered_row_shows_one_random_token() -> None:
    masked = span_masks(keys(400), np.full(400, 4), 4, prob=1.0, length=1, cut_at_end=True)
    assert (masked.sum(1) == 3).all()
    assert (~masked).mean(0) == pytest.approx(np.full(4, 0.25), abs=4 * 0.022)


@pytest.mark.parametrize("length", range(1, 12))
def test_number_and_length_of_spans(length: int) -> None:
    masked = span_masks(keys(50), np.full(50, 40), 40, prob=0.0, length=length)
    assert run_length_shares(masked)[length] == 1
    assert (masked.sum(1) == length).all()
    tokens = span_masks(keys(50), np.full(50, 40), 40, prob=0.0, length=1, min_spans=length)
    assert (tokens.sum(1) == length).all()


def test_counts_are_exact_when_random_numbers_coincide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masking, "_bits", lambda keys, n, stream: np.zeros((3, n), np.uint64))
    masked = span_masks(keys(3), np.full(3, 40), 40, prob=0.2, length=1)
    assert (masked.sum(1) == 8).all()


@pytest.mark.parametrize("wrong", [0, 1, 21])
def test_lengths_out_of_range(wrong: int) -> None:
    with pytest.raises(ValueError, match=rf"row 1 has {wrong} valid tokens"):
        span_masks(keys(3), np.array([20, wrong, 20]), 20, **SPEECH)


def reference_block_mask(
    source: Any, height: int, width: int, count: int, least: int, most: int, min_aspect: float
) -> np.ndarray:
    """BEiT's generator one attempt at a time; ``source`` has uniform(a, b) and randint(a, b)."""
    mask = np.zeros((height, width), dtype=bool)
    while mask.sum() < count:
        for _ in range(10):
            cap = min(count - int(mask.sum()), most)
            area = source.uniform(least, cap)
            aspect = math.exp(source.uniform(math.log(min_aspect), math.log(1 / min_aspect)))
            tall, wide = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if tall >= height or wide >= width:
                continue
            top, left = source.randint(0, height - tall), source.randint(0, width - wide)
            window = mask[top : top + tall, left : left + wide]
            if 0 < (~window).sum() <= cap:
                window[:] = True
                break
        else:
            break
    return mask


class KeyedSource:
    """The random numbers that ``block_masks`` draws for a row, one attempt after another."""

    def __init__(self, key: np.ndarray) -> None:
        turns = [uniform(key, 64, stream=1 + turn)[0] for turn in range(12)]
        self.attempts = iter(np.concatenate(turns).reshape(-1, 4).tolist())
        self.rest: list[float] = []

    def uniform(self, a: float, b: float) -> float:
        if len(self.rest) in (0, 2):  # an attempt that does not fit leaves its placement unused
            self.rest = next(self.attempts)
        return a + (b - a) * self.rest.pop(0)

    def randint(self, a: int, b: int) -> int:
        return a + int(self.rest.pop(0) * (b - a + 1))


def test_the_reference_block_generator_is_the_recorded_one() -> None:
    source = random.Random(1234)
    for bits in RECORDED["image_exact"]:
        mask = reference_block_mask(source, 14, 14, 120, 16, 196, 0.3)
        assert int("".join(map(str, mask.ravel().astype(int))), 2) == int(bits, 16)


@pytest.mark.parametrize(
    ("grid", "count", "min_block", "max_block", "min_aspect"),
    [
        ((14, 14), 120, 16, None, 0.3),
        ((14, 14), 75, 16, 60, 0.3),
        ((6, 14), 40, 4, 30, 0.3),
        ((4, 4), 9, 4, None, 0.3),
        ((20, 5), 99, 2, 7, 0.1),
        ((24, 24), 500, 300, None, 0.3),
    ],
)
def test_block_masks_equal_the_reference(
    grid: tuple[int, int], count: int, min_block: int, max_block: int | None, min_aspect: float
) -> None:
    settings: Any = {"min_block": min_block, "max_block": max_block, "min_aspect": min_aspect}
    for i, mask in enumerate(block_masks(keys(60), grid, count=count, **settings)):
        sizes = (count, min_block, max_block or count)
        expected = reference_block_mask(KeyedSource(keys(1, i)), *grid, *sizes, min_aspect)
        assert np.array_equal(mask, expected) if expected.any() else mask.sum() == 1


@pytest.mark.parametrize("name", RECORDED["image"])
def test_block_masks_follow_the_recording(name: str) -> None:
    recorded = RECORDED["image"][name]
    settings = {name: recorded[name] for name in ("count", "min_block", "max_block")}
    masked = block_masks(keys(6000), tuple(recorded["grid"]), **settings)
    counts, expected = masked.sum((1, 2)), recorded["masked_count"]
    rows = 1 / (1 / recorded["draws"] + 1 / len(masked))  # of one sample as noisy as both
    assert counts.max() == expected["max"]
    assert counts.min() > expected["min"] - 8 * expected["std"]
    assert counts.mean() == pytest.approx(expected["mean"], abs=4 * expected["std"] / rows**0.5)
    for count, times in recorded["masked_count_hist"].items():
        share = times / recorded["draws"]
        noise = math.sqrt(share * (1 - share) / rows)
        assert (counts == int(count)).mean() == pytest.approx(share, abs=4 * noise + 2 / 6000)
    probability = np.array(recorded["position_probability"])
    noise_map = np.sqrt(probability * (1 - probability) / rows)
    assert (np.abs(masked.mean(0) - probability) < 4.5 * noise_map).all()


def test_block_masks_that_never_fit_mask_one_random_patch() -> None:
    # no rectangle of about 8 patches is smaller than 3 x 3 in both directions
    masked = block_masks(keys(500), (3, 3), count=8, min_block=8)
    assert (masked.sum((1, 2)) == 1).all()
    assert masked.mean(0) == pytest.approx(np.full((3, 3), 1 / 9), abs=4 * 0.014)


@pytest.mark.parametrize("count", [0, 12, 13])
def test_block_count_out_of_range(count: int) -> None:
    with pytest.raises(ValueError, match=rf"count is {count}, but a grid of 3 x 4 .* 1 to 11"):
        block_masks(keys(2), (3, 4), count=count, min_block=1)


def test_random_numbers() -> None:
    # fixed for good: other numbers would give a resumed run other masks
    assert row_keys(0, np.array([0, 1])).tolist() == [0x48218226FF3CD4BF, 0xA706DD2F4D197E6F]
    assert uniform(keys(1), 1)[0, 0] == 0.731109900151883
    numbers = uniform(keys(300), 200)
    np.testing.assert_array_equal(numbers[:, :50], uniform(keys(300), 50))
    others = [uniform(keys(300), 200, stream=1), uniform(row_keys(18, np.arange(300)), 200)]
    shifted = [numbers[:-1, :], numbers[1:, :]], [numbers[:, :-1], numbers[:, 1:]]
    for a, b in [*((numbers, other) for other in others), *shifted]:
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 4 / 60_000**0.5
    counts = np.histogram(numbers, bins=20, range=(0, 1))[0]
    assert ((counts - 3000) ** 2 / 3000).sum() < 44  # chi-squared, 19 degrees: p = 0.001
    assert len(np.unique(row_keys(-1, np.arange(-5000, 5000)))) == 10_000
