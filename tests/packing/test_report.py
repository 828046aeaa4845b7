"""The summary."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from selfdistill.packing.declaration import Job
from selfdistill.packing.report import ShardReport, Totals, histogram, load_report


def test_a_histogram_has_round_edges_and_all_samples() -> None:
    lengths = np.array([0.5, 3.0, 3.1, 14.9, 15.0, 29.99, 30.0])
    bars = histogram(lengths)
    assert bars[0] == (0.0, 5.0, 3)
    assert bars[-1] == (25.0, 30.0, 2)
    assert sum(count for _, _, count in bars) == 7
    assert [low for low, _, _ in bars] == [0.0, 5.0, 10.0, 15.0, 20.0, 25.0]


def test_a_few_long_ones_do_not_flatten_it() -> None:
    bars = histogram(np.array([*np.linspace(100, 500, 1000), 9000.0]))
    assert bars[-1][1] == 9000
    assert len(bars) == 8
    assert sum(count for _, _, count in bars) == 1001


@pytest.mark.parametrize("length", [0.0, 7.0, 512.0, 1e-3])
def test_equal_lengths_make_one_bar(length: float) -> None:
    ((low, high, count),) = histogram(np.full(5, length))
    assert low <= length <= high
    assert count == 5


def totals(folder: Path) -> Totals:
    shards = [
        ShardReport("train-000000.tar", 3_000_000, "ab", "cd", [3600.0, 1800.0]),
        ShardReport("train-000001.tar", 2_000_000, "ef", "01", [900.0]),
    ]
    skipped = [("a", "empty", ""), ("b", "broken", "at 3"), ("c", "broken", "at 4")]
    return Totals("audio", "train", "seconds", True, 6, shards, skipped, {".txt": 2, ".csv": 11})


def test_the_summary_in_words(tmp_path: Path) -> None:
    job = Job(tmp_path, None)
    text = "\n".join(totals(tmp_path).words(job))
    assert "train-000000.tar to train-000001.tar: 2 shards, 5.00 MB, 1.75 hours, 3 samples" in text
    assert "2 x broken, such as b (at 3)\n  1 x empty, such as a\n" in text
    assert "files of another kind: 11 .csv, 2 .txt" in text
    few_long = [ShardReport("a.tar", 1, lengths=[*np.linspace(100, 500, 1000), 9000.0])]
    text = "\n".join(replace(totals(tmp_path), shards=few_long).words(job))
    assert re.search(r"\n  400 to 450 +125  ###", text)
    assert re.search(r"\n  450 or more +126  ###", text)
    assert list(totals(tmp_path).summary()["skipped"].items()) == [("broken", 2), ("empty", 1)]


def test_lengths_that_do_not_add_up_are_not_summed(tmp_path: Path) -> None:
    sizes = replace(totals(tmp_path), unit="pixels", adds_up=False)
    assert "2 shards, 5.00 MB, 3 samples of 6 inputs" in sizes.words(Job(tmp_path, None))[0]
    assert not {"length"} & sizes.summary().keys() | {"length"} & sizes.index().keys()
    assert "length" not in sizes.index()["shardlist"][0]
    tokens = replace(totals(tmp_path), unit="tokens")
    assert "5.00 MB, 6,300 tokens, 3 samples" in tokens.words(Job(tmp_path, None))[0]


def test_the_index_is_that_of_others(tmp_path: Path) -> None:
    index, info = totals(tmp_path).index(), totals(tmp_path).info()
    assert index["__kind__"] == "wids-shard-index-v1"
    assert index["shardlist"][1] == {
        "url": "train-000001.tar",
        "nsamples": 1,
        "filesize": 2_000_000,
        "md5sum": "01",
        "sha256": "ef",
        "length": 900.0,
    }
    assert (index["samples"], index["bytes"], index["length"]) == (3, 5_000_000, 6300.0)
    assert info["splits"]["train"]["shard_lengths"] == [2, 1]
    assert info["splits"]["train"]["num_samples"] == 3
    json.dumps(totals(tmp_path).summary())


def test_a_shard_is_finished_when_it_is_there(tmp_path: Path) -> None:
    job = Job(tmp_path, None)
    job.state.mkdir()
    report = ShardReport("a.tar", 3, "ab", "cd", [1.5], [("x", "broken", "")])
    assert load_report(job, "a.tar") is None
    report.save(job)
    assert load_report(job, "a.tar") is None
    (tmp_path / "a.tar").write_bytes(b"123")
    assert load_report(job, "a.tar") == report
    (tmp_path / "a.tar").write_bytes(b"1234")
    assert load_report(job, "a.tar") is None
    nothing = ShardReport("b.tar", skipped=[("x", "broken", "")])
    nothing.save(job)
    assert load_report(job, "b.tar") == nothing
