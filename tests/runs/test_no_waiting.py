"""Between two lines of the log the host hands out steps without waiting for the device."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from launching import Ended
from modality_cases import MODALITIES
from tiny import DECODER, JOINT
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from selfdistill.engine import trainer
from selfdistill.engine.trainer import Trainer
from selfdistill.engine.training_step import TrainingStep

WAITING = {
    "_local_scalar_dense",  # item, float, int, bool
    "is_nonzero",
    "equal",
    "nonzero",  # also behind a boolean index
    "masked_select",
    "unique_dim",
    "_unique2",
    "bincount",
}
"""Operators whose result, or its shape, the host has to know."""
# which layers are dropped is drawn on the host
WORDS = ["train.steps=5", "log.every=4", "optim.warmup_steps=1", "model.layer_drop=0"]
DECODERS = [f"decoder.{key}={value}" for key, value in DECODER.items()]
LOGGED = {3, 4}
"""Steps done before a line of the log, or the end, which may wait."""


class Watch(TorchDispatchMode):
    """Notes what would wait if the tensors were on a device, in the backward pass, too."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in WAITING:
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))

    def method(self, name: str) -> Callable[..., Any]:
        """A method of a tensor that notes its use."""
        before = getattr(Tensor, name)

        def noting(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            self.seen.append(name)
            return before(tensor, *args, **kwargs)

        return noting


class OnItsWay:
    """In place of ``Late``, whose reading waits for the step before only."""

    def __init__(self, numbers: Tensor) -> None:
        self.numbers = numbers

    def read(self, read: Callable[[Tensor], list[float]] = Tensor.tolist) -> list[float]:
        return read(self.numbers)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> dict[int, list[str]]:
    """What would wait in each step of the runs that follow, by steps done before."""
    found: dict[int, list[str]] = {}
    step = Trainer.step

    def watching(self: Trainer, *parts: Any) -> None:
        number = self.step_count
        with Watch() as watch, monkeypatch.context() as patch:
            for name in ("tolist", "cpu"):
                patch.setattr(Tensor, name, watch.method(name))
            step(self, *parts)
        found[number] = watch.seen

    monkeypatch.setattr(Trainer, "step", watching)
    monkeypatch.setattr(trainer, "Late", OnItsWay)
    return found


every_kind_of_run = pytest.mark.parametrize(
    ("modality", "strategy"),
    [*itertools.product(MODALITIES, ("dense", "visible")), (JOINT, "visible")],
)


@every_kind_of_run
def test_a_step_waits_for_nothing(
    modality: str,
    strategy: str,
    config: Callable[..., str],
    here: Callable[..., Ended],
    waits: dict[int, list[str]],
) -> None:
    ended = here(config(modality), *WORDS, *DECODERS, f"strategy={strategy}")
    assert ended.code == 0, ended.stderr
    assert waits.keys() == {0, 1, 2, 3, 4}
    assert not {step: seen for step, seen in waits.items() if seen and step not in LOGGED}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch watches for it on a GPU only")
@every_kind_of_run
def test_torch_sees_no_waiting_either(
    modality: str,
    strategy: str,
    config: Callable[..., str],
    here: Callable[..., Ended],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    step = Trainer.step

    def watching(self: Trainer, *parts: Any) -> None:
        torch.cuda.set_sync_debug_mode("default" if self.step_count in LOGGED else "error")
        step(self, *parts)
        torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Trainer, "step", watching)
    monkeypatch.delenv("ACCELERATE_USE_CPU")
    words = [*WORDS, *DECODERS, f"strategy={strategy}", "train.precision=bf16"]
    ended = here(config(modality), *words)
    assert ended.code == 0, ended.stderr


def test_what_waits_is_noted(
    config: Callable[..., str],
    here: Callable[..., Ended],
    waits: dict[int, list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seed = TrainingStep._seed

    def waiting(self: TrainingStep, number: int) -> None:
        seed(self, number)
        float(torch.ones(()))

    monkeypatch.setattr(TrainingStep, "_seed", waiting)
    assert here(config("text"), *WORDS).code == 0
    assert waits[1] == ["aten._local_scalar_dense.default"]
