"""An epoch of many samples in uneven shards, whatever reads it and however often it is stopped."""

import tarfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, pairwise
from typing import Any

import numpy as np
import pytest
import torch

from selfdistill.data.loader import Source, training_batches
from selfdistill.data.order import SampleOrder
from selfdistill.data.shards import ShardSet
from selfdistill.data.steps import ByLength
from selfdistill.types import Batch

SAMPLES = 6_000
SHARDS = 64
STEP = 48
"""Samples; an epoch is 125 steps."""


class Names:
    """A batch is the samples' numbers."""

    longest = 9.0

    def decode(self, sample: Mapping[str, bytes]) -> bytes:
        return sample["txt"]

    def augment(self, raw: bytes, rng: np.random.Generator) -> np.ndarray:
        return np.array(int(raw))

    def collate(
        self, examples: Sequence[np.ndarray], mask_keys: Any, keys: Sequence[str] = ()
    ) -> Batch:
        return Batch(torch.from_numpy(np.stack(examples)), keys=keys)


pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """64 shards of very different sizes, the smallest of one sample."""
    folder = tmp_path_factory.mktemp("many")
    cuts = np.sort(np.random.default_rng(1).choice(SAMPLES, SHARDS - 1, replace=False))
    bounds = [0, *cuts.tolist(), SAMPLES]
    bounds[1] = 1
    paths = []
    for shard, (a, b) in enumerate(pairwise(bounds)):
        blocks = []
        for number in range(a, b):
            info = tarfile.TarInfo(f"{number:06}.txt")
            info.size = 6
            blocks += [info.tobuf(tarfile.USTAR_FORMAT), b"%06d" % number, bytes(506)]
        path = folder / f"{shard:02}.tar"
        path.write_bytes(b"".join(blocks) + bytes(1024))
        paths.append(path)
    return ShardSet(paths, ["txt"])


@pytest.fixture(scope="module", params=["by count", "by length"])
def source(shards: ShardSet, request: pytest.FixtureRequest) -> Source:
    if request.param == "by count":
        return Source(shards, Names(), STEP)  # type: ignore[arg-type]
    lengths = np.random.default_rng(2).uniform(1, 9, SAMPLES).astype(np.float32)
    return Source(shards, Names(), 0, STEP * 5.0, lengths)  # type: ignore[arg-type]


def read(
    source: Source, start: int, stop: int, *, processes: int = 1, workers: int = 0
) -> list[list[int]]:
    """The samples of each step, in the order of the processes."""
    streams = [iterate(source, start, rank, processes, workers) for rank in range(processes)]
    found: list[list[int]] = [[] for _ in range(start, stop)]
    for stream in streams:
        for step, numbers in zip(found, islice(stream, stop - start), strict=True):
            step += numbers
        stream.close()  # type: ignore[attr-defined]
    return found


def iterate(
    source: Source, start: int, rank: int, processes: int, workers: int
) -> Iterator[list[int]]:
    batches = training_batches(
        {"text": source},
        seed=5,
        accumulate=1,
        rank=rank,
        world_size=processes,
        start_step=start,
        steps=10_000,
        workers=workers,
    )
    for (micro_batch,) in batches:
        yield micro_batch["text"].batch.inputs.tolist()


@pytest.fixture(scope="module")
def straight(source: Source) -> list[list[int]]:
    """130 steps of one process without workers."""
    return read(source, 0, 130)


def test_an_epoch_is_the_data_set(source: Source, straight: list[list[int]]) -> None:
    numbers = [number for step in straight for number in step]
    if source.lengths is None:
        assert sorted(numbers[:SAMPLES]) == list(range(SAMPLES))
        return
    plan = source.steps(SampleOrder(source.shards.sizes, 5), 1)
    assert isinstance(plan, ByLength)
    window = [number for step in straight[: plan.steps] for number in step]
    assert len(window) == len(set(window)) == plan.size
    shares = [plan.share(step, 0, 1) for step in range(130)]
    assert [share.samples.tolist() for share in shares] == straight
    positions = np.concatenate([share.positions for share in shares])
    epoch = np.concatenate([share.samples for share in shares])[positions < SAMPLES]
    if (positions < SAMPLES).sum() == SAMPLES:  # the last window may end behind what was read
        assert sorted(epoch.tolist()) == list(range(SAMPLES))


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_processes_and_workers_change_nothing(
    source: Source, straight: list[list[int]], processes: int, workers: int
) -> None:
    if source.lengths is not None and (processes, workers) not in ((2, 0), (4, 1), (1, 3)):
        pytest.skip("by length has three of the nine")
    assert read(source, 0, 130, processes=processes, workers=workers) == straight


def test_stopped_at_twenty_places_it_goes_on(source: Source, straight: list[list[int]]) -> None:
    """Each time with other numbers of processes and workers."""
    rng = np.random.default_rng(7)
    stops = [0, *np.sort(rng.choice(np.arange(1, 130), 20, replace=False)).tolist(), 130]
    found = []
    for number, (start, stop) in enumerate(pairwise(stops)):
        processes, workers = (1, 2, 4)[number % 3], (0, 1, 3)[number // 3 % 3]
        found += read(source, start, stop, processes=processes, workers=workers)
    assert found == straight
