"""The training module: gradients, padding, precision."""

from collections.abc import Callable

import pytest
import torch

from selfdistill.config import RunConfig
from selfdistill.modalities.base import load_modality
from selfdistill.objective.data2vec import Data2Vec
from selfdistill.types import Batch, Masks

Make = Callable[..., RunConfig]
LENGTHS = {"audio": [205, 150, 92], "text": [11, 7, 4]}
TOKENS = {"audio": [9, 7, 4], "text": [11, 7, 4]}
MASKED = [[1, 2, 3, 6], [0, 5], [2]]


def build(config: RunConfig) -> Data2Vec:
    torch.manual_seed(0)
    model = Data2Vec(load_modality(config.modality), config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def padded_batch(modality: str) -> Batch:
    lengths, tokens = torch.tensor(LENGTHS[modality]), TOKENS[modality]
    generator = torch.Generator().manual_seed(1)
    if modality == "audio":
        inputs = torch.randn(3, 205, generator=generator)
    else:
        inputs = torch.randint(5, 64, (3, 11), generator=generator)
    fill = 0 if modality == "audio" else 1
    inputs[torch.arange(inputs.shape[1]) >= lengths[:, None]] = fill
    masked = torch.zeros(3, tokens[0], dtype=torch.bool)
    for row, places in zip(masked, MASKED, strict=True):
        row[places] = True
    return Batch(inputs, lengths, Masks.from_bool(masked))


def row_of(batch: Batch, modality: str, row: int) -> Batch:
    assert batch.masks is not None
    masked = batch.masks.masked[row : row + 1, : TOKENS[modality][row]]
    inputs = batch.inputs[row : row + 1, : LENGTHS[modality][row]]
    return Batch(inputs, masks=Masks.from_bool(masked))


@pytest.mark.parametrize("modality", ["audio", "text"])
def test_padding_changes_nothing(modality: str, tiny_config: Make) -> None:
    """Loss and gradient of a padded batch are the sums of its rows' alone."""
    model, batch = build(tiny_config(modality)), padded_batch(modality)
    whole = model(batch)
    whole.loss.backward()
    gradient = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    rows = [model(row_of(batch, modality, row)) for row in range(3)]
    sum(row.loss for row in rows).backward()
    torch.testing.assert_close(whole.loss, sum(row.loss for row in rows), rtol=1e-5, atol=0)
    assert float(whole.tokens) == sum(float(row.tokens) for row in rows) == 7
    for name, parameter in model.named_parameters():
        if name in gradient:
            torch.testing.assert_close(parameter.grad, gradient[name], rtol=1e-4, atol=1e-5)


def test_the_originals_let_padding_in(tiny_config: Make) -> None:
    batch = padded_batch("audio")
    right = build(tiny_config("audio"))(batch).loss
    for flag in ("padding_in_target_statistics", "padding_in_positions"):
        leaked = build(tiny_config("audio", compat={flag: True}))(batch).loss
        assert not torch.allclose(leaked, right, rtol=1e-3)


def image_batch() -> Batch:
    masked = torch.zeros(2, 12, dtype=torch.bool)
    masked[0, [1, 4, 5]] = masked[1, [0, 11]] = True
    pixels = torch.randn(2, 3, 24, 32, generator=torch.Generator().manual_seed(1))
    return Batch(pixels, masks=Masks.from_bool(masked))


def any_batch(modality: str) -> Batch:
    return image_batch() if modality == "image" else padded_batch(modality)


@pytest.mark.parametrize("modality", ["audio", "image", "text"])
def test_every_trainable_parameter_gets_a_gradient(modality: str, tiny_config: Make) -> None:
    model = build(tiny_config(modality))
    model(any_batch(modality)).loss.backward()
    for name, parameter in model.named_parameters():
        if name.startswith("teacher."):
            assert parameter.grad is None
        else:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all()
            # keys' bias moves all logits of a query alike
            assert parameter.grad.any() or name.endswith("k_bias"), name


@pytest.mark.parametrize("modality", ["audio", "image", "text"])
def test_what_a_step_tells(modality: str, tiny_config: Make) -> None:
    model, batch = build(tiny_config(modality)), any_batch(modality)
    step = model(batch)
    count, tokens = (5, 24) if modality == "image" else (7, sum(TOKENS[modality]))
    assert float(step.tokens) == float(step.targets.size) == float(step.predictions.size) == count
    assert float(step.masked_share) == pytest.approx(count / tokens)
    assert step.loss.dtype == torch.float32
    assert step.loss.ndim == 0


@pytest.mark.parametrize("modality", ["audio", "image", "text"])
def test_the_student_does_not_see_what_is_masked(modality: str, tiny_config: Make) -> None:
    model, batch = build(tiny_config(modality)), any_batch(modality)
    assert batch.masks is not None
    local = model.student.encoder.embed(batch.inputs, batch.lengths)
    x = local.x.clone()
    x[batch.masks.masked] = 100.0
    changed = type(local)(x, local.padding)
    assert torch.equal(model.student(local, batch.masks), model.student(changed, batch.masks))
    assert not torch.equal(model.student(local, None), model.student(local, batch.masks))


@pytest.mark.parametrize("modality", ["audio", "image", "text"])
def test_the_loss_is_float32_under_autocast(modality: str, tiny_config: Make) -> None:
    model, batch = build(tiny_config(modality)), any_batch(modality)
    exact = model(batch).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = model(batch).loss
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, rtol=0.05, atol=0)
    assert not torch.equal(rounded, exact)


@pytest.mark.parametrize("modality", ["audio", "image", "text"])
def test_features_to_read_out_are_the_unmasked_layers(modality: str, tiny_config: Make) -> None:
    model, batch = build(tiny_config(modality)).eval(), any_batch(modality)
    states, padding = model.student.hidden_states(batch.inputs, batch.lengths)
    local = model.student.encoder.embed(batch.inputs, batch.lengths)
    outputs = [output.x for output in model.student.layers(local)]
    assert len(states) == 4
    for state, output in zip(states[1:], outputs, strict=True):
        torch.testing.assert_close(state, output)
    assert (padding is None) == (modality == "image")


def test_masks_gather_the_masked_rows_only() -> None:
    masked = torch.tensor([[0, 1, 0, 1], [0, 0, 1, 0], [0, 0, 0, 0]]).bool()
    masks = Masks.from_bool(masked)
    assert masks.index.tolist() == [[1, 3], [2, 0], [0, 0]]
    assert masks.weight.tolist() == [[1, 1], [1, 0], [0, 0]]
    x = torch.arange(12.0).view(3, 4, 1)
    assert torch.equal(masks.gather(x)[masks.weight.bool()], x[masked])
    assert float(masks.count()) == 3
