"""How often the processes of a run talk to each other."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator
from launching import rows
from modality_cases import MODALITIES
from small_runs import JOINT, SmallRuns
from torch import Tensor

from selfdistill.engine.trainer import Trainer


@pytest.fixture
def talks(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Of each step: sizes of what two processes exchange, in the step itself and then all."""
    sizes: list[int] = []
    of_steps: list[list[int]] = []
    step, at_intervals = Trainer.step, Trainer._at_intervals

    def reduce(_: Accelerator, tensor: Tensor, reduction: str) -> Tensor:
        assert reduction == "sum"
        sizes.append(tensor.numel())
        return 2 * tensor  # the other one has the same

    def noted(method: Callable[..., None]) -> Callable[..., None]:
        def call(self: Trainer, *parts: Any) -> None:
            method(self, *parts)
            of_steps.append([*sizes])
            sizes.clear()

        return call

    monkeypatch.setattr(Accelerator, "num_processes", 2)
    monkeypatch.setattr(Accelerator, "reduce", reduce)
    monkeypatch.setattr(Trainer, "step", noted(step))
    monkeypatch.setattr(Trainer, "_at_intervals", noted(at_intervals))
    return of_steps


@pytest.mark.parametrize("modality", ["image", JOINT])
def test_twice_per_step_and_once_more_for_metrics(
    modality: str, runs: SmallRuns, talks: list[list[int]], tmp_path: Path
) -> None:
    parts = len(MODALITIES) if modality == JOINT else 1
    words = ("train.accumulate=2", "log.every=2", "train.steps=4", "eval.every=4")
    assert runs.pretrain(modality, tmp_path, *words) == 0
    # masked tokens before the backward pass; behind it losses, void steps, samples tried and bad
    # ones; before the first step whether a process was asked to stop
    assert talks[0].pop(0) == 1
    assert talks[::2] == [[parts, parts + 1 + 2 * parts]] * 4
    moments = 2 * (1 + 16 + 16 * 16)
    blocks = 2
    metrics = [5 + blocks + moments] * parts + [2]  # bad samples and retries
    assert talks[1::2] == [[], metrics, [], metrics]
    assert [row["step"] for row in rows(tmp_path)] == [2, 4]
