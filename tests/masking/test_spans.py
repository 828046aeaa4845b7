"""Spans against the originals' recorded statistics, and what holds for every mask of spans."""

import math
from typing import Any

import numpy as np
import pytest
from recorded import RECORDED, keys, run_lengths

from selfdistill.masking import row_keys, span_masks

SPEECH: Any = {"prob": 0.65, "length": 10}
TEXT: Any = {"prob": 0.35, "length": 4, "cut_at_end": True}


def run_length_shares(masked: np.ndarray) -> np.ndarray:
    """Share of each length among the runs of masked tokens, [T + 1]."""
    runs = run_lengths(masked)[1]
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


@pytest.mark.parametrize("wrong", [0, 1, 21])
def test_lengths_out_of_range(wrong: int) -> None:
    with pytest.raises(ValueError, match=rf"row 1 has {wrong} valid tokens"):
        span_masks(keys(3), np.array([20, wrong, 20]), 20, **SPEECH)
