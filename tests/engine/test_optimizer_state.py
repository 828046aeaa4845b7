from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from selfdistill.engine.checkpoint import Checkpointer
from selfdistill.engine.checkpoint_files import Checkpoint, read_checkpoint
from selfdistill.engine.optimizer_state import pack_optimizer, unpack_optimizer
from selfdistill.errors import UserError


def network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Conv2d(1, 3, 3), nn.Linear(8, 4))
    return model.to(memory_format=torch.channels_last)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> list[float]:
    losses = []
    for step in steps:
        x = torch.randn(5, 6, generator=torch.Generator().manual_seed(step))
        loss = model[3](model[1](model[0](x))).square().mean()  # type: ignore[index]
        image = torch.randn(2, 1, 5, 5, generator=torch.Generator().manual_seed(step))
        if step >= 4:  # the convolution has no gradient before
            loss = loss + model[2](image).square().mean()  # type: ignore[index]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def adamw(model: nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)


@pytest.mark.parametrize("first", [3, 5])
def test_resumed_training_is_bit_identical(tmp_path: Path, first: int) -> None:
    whole = network()
    reference = adamw(whole)
    losses = train(whole, reference, range(7))

    model = network()
    optimizer = adamw(model)
    train(model, optimizer, range(first))
    packed = pack_optimizer(optimizer, model)
    assert ("2.weight/step" in packed) == (first > 4)
    saver = Checkpointer(tmp_path, keep=1)
    path = saver.save(Checkpoint(first, model.state_dict(), packed, {}))

    loaded = read_checkpoint(path)
    model = network()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    model.load_state_dict(loaded.model)
    optimizer = adamw(model)
    unpack_optimizer(optimizer, model, loaded.optimizer)
    for name, value in pack_optimizer(optimizer, model).items():
        assert value.dtype == packed[name].dtype
        assert value.stride() == packed[name].stride()
        assert torch.equal(value, packed[name])
    assert train(model, optimizer, range(first, 7)) == losses[first:]
    for ours, theirs in zip(model.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    ours_state, theirs_state = pack_optimizer(optimizer, model), pack_optimizer(reference, whole)
    assert ours_state.keys() == theirs_state.keys()
    for name, value in ours_state.items():
        assert torch.equal(value, theirs_state[name])


def test_unpacking_copies_and_leaves_nothing_of_before() -> None:
    model = network()
    optimizer = adamw(model)
    train(model, optimizer, range(2))
    packed = {name: t.clone() for name, t in pack_optimizer(optimizer, model).items()}
    kept = {name: t.clone() for name, t in packed.items()}
    train(model, optimizer, range(4, 5))
    assert "2.weight/step" in pack_optimizer(optimizer, model)
    unpack_optimizer(optimizer, model, packed)
    assert pack_optimizer(optimizer, model).keys() == kept.keys()
    train(model, optimizer, range(2, 3))
    for name, value in packed.items():
        assert torch.equal(value, kept[name])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t | {"9.weight/exp_avg": torch.zeros(2)}, "'9.weight/exp_avg' belongs to no"),
        (lambda t: t | {"0.weight/momentum": torch.zeros(8, 6)}, "'0.weight/momentum' belongs"),
        (
            lambda t: t | {"0.weight/exp_avg": torch.zeros(6, 8)},
            r"has shape \[6, 8\], not \[8, 6\]",
        ),
        (lambda t: t | {"0.weight/step": torch.zeros(1)}, r"has shape \[1\], not \[\]"),
        (lambda t: {k: v for k, v in t.items() if k != "0.bias/exp_avg"}, "'0.bias/exp_avg' is m"),
    ],
)
def test_state_that_does_not_fit_is_refused(
    change: Callable[[dict[str, Any]], dict[str, Any]], message: str
) -> None:
    model = network()
    optimizer = adamw(model)
    train(model, optimizer, range(2))
    before = {name: t.clone() for name, t in pack_optimizer(optimizer, model).items()}
    with pytest.raises(UserError, match=message):
        unpack_optimizer(optimizer, model, change(dict(before)))
    after = pack_optimizer(optimizer, model)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in after)


def test_state_of_frozen_parameters_is_refused() -> None:
    model = network()
    train(model, trained := adamw(model), range(2))
    fewer = torch.optim.AdamW(model[3].parameters())  # type: ignore[index]
    with pytest.raises(UserError, match=r"'0\.weight/\w+' belongs to no trained parameter"):
        unpack_optimizer(fewer, model, pack_optimizer(trained, model))
