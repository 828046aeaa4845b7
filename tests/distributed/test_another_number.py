"""A run may go on with another number of processes, and with its model in shards or whole."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from launching import rows
from small_runs import saved
from worlds import Job, train

pytestmark = pytest.mark.slow
SAVED, STEPS = 6, 10
Words = Callable[..., list[str]]
Place = tuple[int, bool]
"""Number of processes, and whether the model is in shards."""
WAYS: list[tuple[Place, Place]] = [
    ((2, False), (1, False)),
    ((2, False), (3, True)),
    ((2, False), (4, False)),
    ((2, True), (1, False)),
    ((2, True), (3, False)),
    ((2, True), (4, True)),
]


def name(way: tuple[Place, Place]) -> str:
    return " then ".join(f"{n} {'sharded' if sharded else 'whole'}" for n, sharded in way)


@pytest.fixture(scope="module")
def runs(words: Words, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted, and one for each way, by name."""
    folder = tmp_path_factory.mktemp("another")
    common = ["strategy=visible", "train.batch_size=12", "optim.schedule=constant"]
    common += [f"checkpoint.every={SAVED}"]

    def job(run: str, sharded: bool, steps: int) -> Job:
        return Job(words("audio", folder / run, *common, f"train.steps={steps}"), sharded)

    train(2, [job(str(sharded), sharded, SAVED) for sharded in (False, True)], folder / "before")
    jobs = {1: [job("reference", False, STEPS)]}
    for (_, was_sharded), (processes, sharded) in WAYS:
        run = name(((2, was_sharded), (processes, sharded)))
        shutil.copytree(folder / str(was_sharded), folder / run)
        jobs.setdefault(processes, []).append(job(run, sharded, STEPS))
    for processes, of_them in jobs.items():
        printed = train(processes, of_them, folder / f"output of {processes}")
        assert all("resumed from" in text for text in printed[processes == 1 :])
    return folder


@pytest.mark.parametrize("way", WAYS, ids=name)
def test_it_goes_on_as_if_nothing_had_happened(way: tuple[Place, Place], runs: Path) -> None:
    found, wanted = rows(runs / name(way)), rows(runs / "reference")
    assert [row["step"] for row in found] == [*range(1, STEPS + 1)]
    for row, expected in zip(found, wanted, strict=True):
        assert row["loss"] == pytest.approx(expected["loss"], abs=1e-4)
    ours, theirs = saved(runs / name(way), STEPS), saved(runs / "reference", STEPS)
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, rtol=0, atol=1e-4, msg=key)
