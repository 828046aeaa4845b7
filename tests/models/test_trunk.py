"""The stack of blocks, and the weights it starts from."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from selfdistill.config import ModelConfig
from selfdistill.models.trunk import Trunk, attention_mask

CONFIG = ModelConfig(width=8, depth=3, heads=2, mlp_ratio=2.0)
WIDE = ModelConfig(width=96, depth=4, heads=4)


def vectors() -> torch.Tensor:
    return torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))


def run(trunk: Trunk, *given: Any, **more: Any) -> torch.Tensor:
    """What the last block makes of it, and the closing norm of that."""
    *_, last = trunk.layers(*given, **more)
    return trunk.norm(last.x)


@torch.no_grad()
@pytest.mark.parametrize("order", ["pre", "post"])
def test_layers_chain_and_only_pre_norm_closes_with_a_norm(order: str) -> None:
    trunk, x = Trunk(replace(CONFIG, norm_order=order)), vectors()
    outputs = list(trunk.layers(x))
    assert len(outputs) == 3
    expected = x
    for block, output in zip(trunk.blocks, outputs, strict=True):
        expected = block(expected).x
        assert torch.equal(output.x, expected)
    closing = [name for name, _ in trunk.named_parameters() if name.startswith("norm")]
    assert bool(closing) == (order == "pre")
    if order == "pre":
        expected = torch.nn.functional.layer_norm(expected, (8,), eps=1e-5)
    torch.testing.assert_close(run(trunk, x), expected)


def test_layers_are_made_one_at_a_time() -> None:
    trunk = Trunk(CONFIG)
    runs = []
    for block in trunk.blocks:
        block.register_forward_hook(lambda *_: runs.append(1))
    next(iter(trunk.layers(vectors())))
    assert len(runs) == 1


@torch.no_grad()
def test_padded_keys_do_not_matter() -> None:
    trunk, x = Trunk(CONFIG), vectors()
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    found = run(trunk, x, padding)
    torch.testing.assert_close(found[0], run(trunk, x[:1])[0])
    torch.testing.assert_close(found[1, :3], run(trunk, x[1:, :3])[0])
    assert not torch.allclose(run(trunk, x)[1, :3], found[1, :3])


def test_bias_and_padding_make_one_mask() -> None:
    bias = torch.arange(9.0).view(1, 1, 3, 3)
    padding = torch.tensor([[False, False, True]])
    mask = attention_mask(padding, bias)
    assert mask is not None
    assert torch.equal(mask[..., :2], bias[..., :2])
    assert (mask[..., 2].exp() == 0).all()
    assert attention_mask(None, None) is None


@torch.no_grad()
def test_layer_drop_skips_blocks_in_training_only() -> None:
    trunk, x = Trunk(replace(CONFIG, layer_drop=0.5)), vectors()
    counts = [len(list(trunk.train().layers(x))) for _ in range(200)]
    assert set(counts) == {0, 1, 2, 3}
    assert sum(counts) / len(counts) == pytest.approx(1.5, abs=0.25)
    assert len(list(trunk.eval().layers(x))) == 3


# a normal distribution cut at one deviation has this share of its deviation
CUT = math.sqrt(1 - 2 * math.exp(-0.5) / math.sqrt(2 * math.pi) / math.erf(math.sqrt(0.5)))


@torch.no_grad()
@pytest.mark.parametrize("initializer", ["bert", "beit"])
def test_initial_weights(initializer: str) -> None:
    torch.manual_seed(0)
    trunk = Trunk(replace(WIDE, initializer=initializer))
    for number, block in enumerate(trunk.blocks, start=1):
        rescale = math.sqrt(2 * number) if initializer == "beit" else 1.0
        for name, parameter in block.named_parameters():
            if parameter.ndim == 1:
                assert (parameter == (1.0 if "norm" in name and "weight" in name else 0.0)).all()
                continue
            is_output = name in ("attention.proj.weight", "mlp.fc2.weight")
            expected = 0.02 / (rescale if is_output else 1.0)
            limit = expected if initializer == "beit" else math.inf
            assert parameter.abs().max() <= limit * 1.0001
            spread = expected * (CUT if initializer == "beit" else 1.0)
            noise = 5 / math.sqrt(2 * parameter.numel())
            assert float(parameter.std()) == pytest.approx(spread, rel=noise)
            assert float(parameter.mean()) == pytest.approx(0, abs=spread * 5 / 96)


def test_it_can_be_built_without_memory() -> None:
    with torch.device("meta"):
        trunk = Trunk(replace(WIDE, norm_order="pre", drop_path=0.1, initializer="beit"))
    assert all(parameter.is_meta for parameter in trunk.parameters())


def biases_of(count: int, rows: int = 1) -> list[torch.Tensor]:
    return list(torch.randn(count, rows, 2, 5, 5, generator=torch.Generator().manual_seed(2)))


@torch.no_grad()
def test_a_bias_is_for_every_block_or_each_has_its_own() -> None:
    trunk, x = Trunk(CONFIG), vectors()
    for biases in (biases_of(1), biases_of(3), biases_of(3, rows=2)):
        expected = x
        for number, block in enumerate(trunk.blocks):
            expected = block(expected, biases[number % len(biases)]).x
        torch.testing.assert_close(run(trunk, x, biases=biases), expected)
    assert not torch.allclose(
        run(trunk, x, biases=biases_of(3)), run(trunk, x, biases=biases_of(1))
    )
    assert not torch.allclose(run(trunk, x, biases=biases_of(1)), run(trunk, x))


@torch.no_grad()
def test_a_skipped_block_takes_its_bias_along(monkeypatch: pytest.MonkeyPatch) -> None:
    trunk, x, biases = Trunk(replace(CONFIG, layer_drop=0.5)).train(), vectors(), biases_of(3)
    monkeypatch.setattr(trunk.chance, "run", lambda: [0, 2])  # the second is skipped
    found = [output.x for output in trunk.layers(x, biases=biases)]
    first = trunk.blocks[0](x, biases[0]).x
    assert len(found) == 2
    assert torch.equal(found[0], first)
    assert torch.equal(found[1], trunk.blocks[2](first, biases[2]).x)


@torch.no_grad()
def test_the_last_block_that_is_run_gives_only_some_places(monkeypatch: pytest.MonkeyPatch) -> None:
    trunk, x = Trunk(replace(CONFIG, layer_drop=0.5)).train(), vectors()
    monkeypatch.setattr(trunk.chance, "run", lambda: [0, 1])  # the third is skipped
    whole = [output.x for output in trunk.layers(x)]
    first, last = trunk.layers(x, places=torch.tensor([[1, 4], [0, 2]]))
    assert torch.equal(first.x, whole[0])
    expected = torch.stack([whole[1][0, [1, 4]], whole[1][1, [0, 2]]])
    torch.testing.assert_close(last.x, expected)
