"""Checkpoints are written while training goes on, as if it had waited for them."""

import errno
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from launching import ENVIRONMENT, fresh_accelerate
from torch import nn

from selfdistill.engine import checkpoint as checkpoint_module
from selfdistill.engine.checkpoint import Checkpointer
from selfdistill.engine.checkpoint_files import (
    Checkpoint,
    complete_checkpoints,
    newest_checkpoint,
    read_checkpoint,
    write_checkpoint,
)
from selfdistill.engine.optimizer_state import pack_optimizer
from selfdistill.engine.saving import Saver
from selfdistill.errors import SelfdistillError

FILES = ["manifest.json", "model.safetensors", "optimizer.safetensors", "state.json"]


class Training:
    """A model, its optimiser, and the saver of both."""

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(0)
        self.model = nn.Linear(5, 3)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1)
        self.checkpointer = Checkpointer(folder, keep=9)
        self.saver = Saver(self.model, self.optimizer, Accelerator(), self.checkpointer, "")
        self.steps = 0

    def step(self) -> None:
        self.steps += 1
        self.model(torch.full((1, 5), float(self.steps))).sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def now(self) -> Checkpoint:
        packed = pack_optimizer(self.optimizer, self.model)
        return Checkpoint(self.steps, self.model.state_dict(), packed, {"seen": self.steps})

    def save(self) -> None:
        self.saver.save(self.steps, {"seen": self.steps}, {})


@pytest.fixture
def training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Training]:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    with fresh_accelerate():
        yield Training(tmp_path / "checkpoints")


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Nothing is written before this is called."""
    opened, write = threading.Event(), checkpoint_module.write_checkpoint

    def waiting(*parts: Any) -> None:
        assert opened.wait(60)
        write(*parts)

    monkeypatch.setattr(checkpoint_module, "write_checkpoint", waiting)
    yield opened.set
    opened.set()


@pytest.mark.parametrize("steps", [1, 3])
def test_training_goes_on_and_nothing_of_it_gets_into_the_files(
    steps: int, training: Training, gate: Callable[[], None], tmp_path: Path
) -> None:
    for _ in range(steps):
        training.step()
    write_checkpoint(tmp_path, training.now())
    wanted = {name: (tmp_path / name).read_bytes() for name in FILES}
    training.save()
    assert training.saver.last == training.checkpointer.folder / f"step-{steps:08d}"
    assert not training.saver.last.exists()
    training.step()
    training.saver.check()
    gate()
    training.saver.finish()
    assert {path.name: path.read_bytes() for path in training.saver.last.iterdir()} == wanted


def test_memory_for_copies_is_used_again(training: Training) -> None:
    places = []
    for _ in range(3):
        training.step()
        training.save()
        copies = training.saver._copies
        assert copies is not None
        places.append({name: copy.data_ptr() for name, copy in copies.items()})
    assert len(places[0]) == 2 + 2 * 3
    assert places[0] == places[1] == places[2]


def test_one_at_a_time(training: Training, gate: Callable[[], None]) -> None:
    training.step()
    training.save()
    first = training.saver.last
    training.step()
    second = threading.Thread(target=training.save)
    second.start()
    second.join(0.2)
    assert second.is_alive()
    assert training.saver.last == first
    gate()
    second.join()
    training.saver.finish()
    assert [path.name for path in complete_checkpoints(training.checkpointer.folder)] == [
        "step-00000001",
        "step-00000002",
    ]
    loaded = read_checkpoint(complete_checkpoints(training.checkpointer.folder)[0])
    assert loaded.state == {"seen": 1}
    assert float(loaded.optimizer["weight/step"]) == 1


def test_a_failure_is_told_once_at_the_next_look(
    training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    training.step()
    training.save()
    training.saver.finish()
    kept = training.saver.last
    with monkeypatch.context() as patched:
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        patched.setattr(checkpoint_module, "write_checkpoint", lambda *_: raise_(full))
        training.step()
        training.save()
        assert training.checkpointer._writing is not None
        wait([training.checkpointer._writing], timeout=60)
        with pytest.raises(SelfdistillError, match="cannot save the checkpoint of step 2") as told:
            training.saver.check()
    for words in ("No space left on device", "it needs ", f"complete checkpoint is {kept}"):
        assert words in str(told.value)
    training.saver.check()
    training.saver.finish()
    training.save()
    training.saver.finish()
    assert training.saver.last is not None
    assert newest_checkpoint(training.checkpointer.folder) == training.saver.last


@pytest.mark.parametrize("ask", [Training.save, lambda training: training.saver.finish()])
def test_a_failure_is_told_by_what_waits_for_it(
    ask: Callable[[Training], None], training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    denied = OSError(errno.EACCES, os.strerror(errno.EACCES))
    monkeypatch.setattr(checkpoint_module, "write_checkpoint", lambda *_: raise_(denied))
    training.step()
    training.save()
    with pytest.raises(SelfdistillError, match="Permission denied"):
        ask(training)


def raise_(error: Exception) -> None:
    raise error


def kept(saver: Checkpointer) -> list[int]:
    return [int(path.name[5:]) for path in complete_checkpoints(saver.folder)]


def example(step: int) -> Checkpoint:
    return Checkpoint(step, {"weight": torch.tensor([float(step)])}, {}, {})


def test_every_so_many_steps_stay(tmp_path: Path) -> None:
    saver = Checkpointer(tmp_path, keep=2, keep_every=6)
    for step in range(2, 22, 2):
        saver.save(example(step))
    assert kept(saver) == [6, 12, 18, 20]


def test_the_best_stays(tmp_path: Path) -> None:
    saver = Checkpointer(tmp_path, keep=1)
    for step, value in ((1, 0.5), (2, 0.9), (3, 0.9), (4, 0.7)):
        saver.begin(example(step))
        saver.rate(step, value, "knn")
    saver.wait()
    saver.save(example(5))
    assert kept(saver) == [2, 5]
    best = {"step": 2, "value": 0.9, "by": "knn"}
    assert json.loads((tmp_path / "best.json").read_text()) == best
    again = Checkpointer(tmp_path, keep=1)
    again.save(example(6))
    again.rate(6, 0.8, "knn")
    again.rate(7, 1.0, "knn")  # has none
    again.save(example(8))
    assert kept(again) == [2, 8]
    shutil.rmtree(tmp_path / "step-00000002")
    again.rate(8, 0.1, "knn")
    again.save(example(9))
    assert kept(again) == [8, 9]
    assert newest_checkpoint(again.folder) == tmp_path / "step-00000009"


def test_values_of_another_figure_are_no_measure(tmp_path: Path) -> None:
    saver = Checkpointer(tmp_path, keep=1)
    for step, value, by in ((1, 0.5, "knn"), (2, -0.9, "-loss"), (3, -1.2, "-loss")):
        saver.save(example(step))
        saver.rate(step, value, by)
        # what was the best by the other one stays until there is another best
        assert kept(saver) == {1: [1], 2: [1, 2], 3: [2, 3]}[step]


@pytest.mark.parametrize("text", ["", "[1]", "{}", '{"step": null}'])
def test_a_damaged_note_of_the_best_is_as_none(text: str, tmp_path: Path) -> None:
    saver = Checkpointer(tmp_path, keep=1)
    saver.save(example(1))
    (tmp_path / "best.json").write_text(text)
    saver.save(example(2))
    saver.rate(2, 0.1, "knn")
    saver.save(example(3))
    assert kept(saver) == [2, 3]
