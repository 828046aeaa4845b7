import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from selfdistill.errors import UserError
from selfdistill.probes.cache import (
    ENTRY,
    FeatureCache,
    numbers_digest,
    shards_digest,
    weights_digest,
)
from selfdistill.probes.features import Rows

KEY = {"weights": "a", "data": {"shards": "b"}}


def batches(count: int = 3, tokens: bool = False) -> Iterator[Rows]:
    for number in range(count):
        rows = 4 + number
        layers = [np.full((rows, 2 + i), 10 * number + i, dtype=np.float32) for i in range(2)]
        lengths = [rows] if tokens else None
        samples = 1 if tokens else rows
        yield Rows(layers, [number] * samples, [*range(samples)], lengths)


def entries(cache: FeatureCache) -> list[Path]:
    return sorted(cache.folder.iterdir())


@pytest.fixture
def cache(tmp_path: Path) -> FeatureCache:
    return FeatureCache(tmp_path / "a" / "features", 10**6)


@pytest.mark.parametrize("tokens", [False, True])
def test_what_was_kept_is_found(cache: FeatureCache, tokens: bool) -> None:
    assert cache.find(KEY) is None
    kept = cache.keep(KEY, batches(tokens=tokens))
    found = FeatureCache(cache.folder, 10**6).find(dict(reversed(KEY.items())))
    assert found is not None
    for features in (kept, found):
        assert [layer.shape for layer in features.layers] == [(15, 2), (15, 3)]
        assert isinstance(features.layers[0], np.memmap)
        assert features.layers[1][:, 0].tolist() == [1.0] * 4 + [11.0] * 5 + [21.0] * 6
        if tokens:
            assert features.lengths.tolist() == [4, 5, 6]
            assert features.labels.tolist() == [0, 1, 2]
        else:
            assert features.lengths is None
            assert features.labels.tolist() == [0] * 4 + [1] * 5 + [2] * 6
            assert features.numbers.tolist() == [*range(4), *range(5), *range(6)]
    assert cache.find(KEY | {"weights": "other"}) is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda entry: (entry / "layer_001.npy").unlink(),
        lambda entry: os.truncate(entry / "layer_000.npy", 150),
        lambda entry: (entry / "numbers.npy").write_bytes(b"\x93NUMPY"),
        lambda entry: (entry / ENTRY).write_text("{}"),
        lambda entry: (entry / ENTRY).write_text("{"),
        lambda entry: (entry / ENTRY).unlink(),
    ],
)
def test_damage_is_seen_and_made_good(
    cache: FeatureCache, damage: object, caplog: pytest.LogCaptureFixture
) -> None:
    cache.keep(KEY, batches())
    (entry,) = entries(cache)
    damage(entry)  # type: ignore[operator]
    assert cache.find(KEY) is None
    assert "is damaged" in caplog.text
    assert entries(cache) == []
    assert len(cache.keep(KEY, batches()).labels) == 15


def test_a_flipped_bit_is_seen(cache: FeatureCache) -> None:
    cache.keep(KEY, batches())
    path = entries(cache)[0] / "layer_000.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    assert cache.find(KEY) is None


def test_nothing_half_written_stays(cache: FeatureCache) -> None:
    def broken() -> Iterator[Rows]:
        yield from batches(1)
        raise OSError(errno.ENOSPC, "no space")

    with pytest.raises(OSError, match="no space") as caught:
        cache.keep(KEY, broken())
    assert caught.value.filename == str(cache.folder)
    assert entries(cache) == []


def test_what_killed_processes_left_goes(cache: FeatureCache) -> None:
    old, new = (cache.folder / f".writing-{name}" for name in ("old", "new"))
    for path in (old, new):
        path.mkdir()
        (path / "layer_000.npy").touch()
    os.utime(old, (1, 1))
    cache.keep({"weights": 0}, batches())
    assert (old.exists(), new.exists()) == (False, True)
    (half,) = set(entries(cache)) - {new}
    (half / ENTRY).unlink()  # killed while it was removed
    cache.keep(KEY, batches())
    assert not half.exists()


def test_what_another_process_takes_away_meanwhile(cache: FeatureCache) -> None:
    """A link that leads nowhere is listed and not there, too."""
    cache.keep({"weights": 0}, batches())
    (entries(cache)[0] / "layer_002.npy").symlink_to("gone")
    (cache.folder / ".writing-other").symlink_to("gone")
    (cache.folder / "other").symlink_to("gone")
    assert len(cache.keep(KEY, batches()).labels) == 15


def test_those_used_longest_ago_go_first(cache: FeatureCache) -> None:
    for number in range(3):
        cache.keep({"weights": number}, batches())
        for entry in cache.folder.iterdir():
            if json.loads((entry / ENTRY).read_text())["key"]["weights"] == number:
                os.utime(entry, (number, number))
    size = sum(file.stat().st_size for file in entries(cache)[0].iterdir())
    later = FeatureCache(cache.folder, int(3.5 * size))
    later.find({"weights": 0})
    later.keep({"weights": 3}, batches())
    there = [number for number in range(4) if later.find({"weights": number}) is not None]
    assert there == [0, 2, 3]


def test_a_set_beyond_the_bound_is_refused(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, 200)
    with pytest.raises(UserError, match="--cache-gb: the features of one set need more than"):
        cache.keep(KEY, batches())
    assert entries(cache) == []


def test_a_set_that_will_be_beyond_the_bound_is_refused_early(tmp_path: Path) -> None:
    """200 GB are not computed to find out that they do not fit into 20."""
    cache, asked = FeatureCache(tmp_path, 10**6), []

    def endless(width: int) -> Iterator[Rows]:
        for number in range(20):
            asked.append(number)
            yield Rows([np.zeros((64, width), np.float32)], [0] * 64, [*range(64)])

    with pytest.raises(UserError, match=r"need more than 0.001 \(about 0.0013\); .*--probes"):
        cache.keep(KEY, endless(246), 20 * 64)
    assert asked == [0, 1, 2, 3]
    assert entries(cache) == []
    cache.keep(KEY, endless(180), 20 * 64)  # 0.94 MB


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="--cache: cannot make"):
        FeatureCache(tmp_path / "file" / "in", 1)


def test_digests_tell_things_apart(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    before = weights_digest(module)
    assert weights_digest(module) == before
    module[1].running_mean[0] += 1
    assert weights_digest(module) != before
    shard = tmp_path / "a.tar"
    shard.write_bytes(b"1")
    first = shards_digest([shard], ["k"])
    assert shards_digest([shard], ["k"]) == first
    assert shards_digest([shard], ["l"]) != first
    os.utime(shard, (5, 5))
    assert shards_digest([shard], ["k"]) != first
    assert numbers_digest(np.arange(3)) != numbers_digest(np.arange(4))
