"""What a line of the log says equals what is computed from the tensors themselves."""

import math
import weakref
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from launching import rows
from small_runs import SmallRuns
from torch import Tensor

from selfdistill.engine.interval import Interval
from selfdistill.engine.training_step import Step
from selfdistill.objective.data2vec import StepOutput
from selfdistill.objective.moments import Moments

D, BLOCKS = 6, 3
Pair = tuple[Tensor, Tensor]


def vectors(seed: int) -> Pair:
    """Targets and predictions [rows, tokens, D] that agree in part."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randn(4, 9, D, generator=generator) + 0.3
    return targets, 0.6 * targets + 0.2 * torch.randn(4, 9, D, generator=generator)


def output(pair: Pair, valid: float, spread: float = 0.25) -> StepOutput:
    targets, predictions = pair
    ones = torch.ones(4, 9)
    return StepOutput(
        loss=torch.tensor(0.0),
        tokens=torch.tensor(36.0),
        valid=torch.tensor(valid),
        targets=Moments.of(targets, ones),
        predictions=Moments.of(predictions, ones),
        error=(targets - predictions).square().sum(),
        sample_variance=torch.tensor(spread),
        teacher_norms=torch.tensor([1.0, 2.0, 3.0]) * valid,
    )


def add(interval: Interval, parts: Sequence[dict[str, StepOutput]], taken: bool = True) -> None:
    loss = torch.tensor(0.5, dtype=torch.float64)
    norm, numbers = torch.tensor(1.0), torch.zeros(6)
    interval.add(Step(parts, loss[None], loss, norm, None, torch.tensor(taken), numbers))


def test_figures_of_a_modality(accelerator: Accelerator) -> None:
    interval = Interval(["image"])
    pairs = [vectors(seed) for seed in range(4)]
    for number in (0, 2):  # two steps of two micro-batches
        parts = [{"image": output(pair, 72.0 + number)} for pair in pairs[number : number + 2]]
        add(interval, parts)
    _, own = interval.take(accelerator)
    targets, predictions = (
        torch.cat([pair[i] for pair in pairs]).double().flatten(0, 1) for i in range(2)
    )
    found = own["image"]
    assert found["masked_share"] == pytest.approx(4 * 36 / (2 * 72 + 2 * 74))
    residual = (targets - predictions).square().sum() / (targets - targets.mean(0)).square().sum()
    assert found["explained_variance"] == pytest.approx(float(1 - residual), rel=1e-5)
    assert 0.5 < found["explained_variance"] < 0.9
    mean = predictions.mean(0).square().sum() / predictions.square().sum(-1).mean()
    assert found["prediction_cosine"] == pytest.approx(float(mean), rel=1e-5)
    assert found["prediction_rank"] < D
    assert found["sample_std"] == 0.5
    for block in range(1, BLOCKS + 1):
        assert found[f"teacher_norm_{block:02d}"] == pytest.approx(block)


def test_predicting_the_mean_explains_nothing(accelerator: Accelerator) -> None:
    interval = Interval(["image"])
    targets, _ = vectors(0)
    mean = targets.mean((0, 1)).expand_as(targets)
    add(interval, [{"image": output((targets, mean), 72.0)}])
    _, own = interval.take(accelerator)
    assert own["image"]["explained_variance"] == pytest.approx(0, abs=1e-6)
    assert own["image"]["prediction_cosine"] == pytest.approx(1)


def test_micro_batches_of_one_sample_do_not_count(accelerator: Accelerator) -> None:
    interval = Interval(["image"])
    parts = [{"image": output(vectors(0), 72.0, spread)} for spread in (0.04, math.nan)]
    add(interval, parts)
    assert interval.take(accelerator)[1]["image"]["sample_std"] == pytest.approx(0.2)


def test_what_is_not_taken_adds_nothing(accelerator: Accelerator) -> None:
    good, bad = [{"image": output(vectors(0), 72.0)}], [{"image": output(vectors(1), math.nan)}]
    alone, among = Interval(["image"]), Interval(["image"])
    add(alone, good)
    for parts, taken in ((bad, False), (good, True), (bad, False)):
        add(among, parts, taken)
    assert among.take(accelerator)[1] == alone.take(accelerator)[1]


def test_moments_of_a_step_are_let_go() -> None:
    """They have width squared numbers for each micro-batch."""
    interval, parts = Interval(["image"]), [{"image": output(vectors(0), 72.0)}]
    moments = weakref.ref(parts[0]["image"].targets.outer)
    add(interval, parts)
    del parts
    assert moments() is None


@pytest.mark.parametrize("left_out", [0, 2])
def test_without_a_step_nothing_is_known(left_out: int, accelerator: Accelerator) -> None:
    interval = Interval(["image"])
    for _ in range(left_out):
        add(interval, [{"image": output(vectors(0), 72.0)}], taken=False)
    run, own = interval.take(accelerator)
    assert math.isnan(run["loss"])
    assert all(math.isnan(value) for value in own["image"].values())


@pytest.mark.parametrize("clip", [0.0, 1e-3])
def test_norms_of_the_parts_make_up_the_whole(clip: float, runs: SmallRuns, tmp_path: Path) -> None:
    words = ["log.every=2", "train.steps=3", f"optim.clip_norm={clip}"]
    assert runs.pretrain("audio", tmp_path, *words) == 0
    *_, last = rows(tmp_path)  # of one step: the third
    parts = [last[f"grad_norm_{part}"] for part in ("blocks", "encoder", "predictor")]
    assert min(parts) > 0
    assert math.hypot(*parts) == pytest.approx(last["grad_norm"], rel=1e-4)
