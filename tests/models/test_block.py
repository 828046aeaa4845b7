"""The block against plain formulas."""

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from selfdistill.config import ModelConfig
from selfdistill.models.block import Attention, Block
from selfdistill.models.stochastic_depth import Kept
from selfdistill.models.trunk import attention_mask

CONFIG = ModelConfig(width=12, depth=2, heads=3, mlp_ratio=2.0)
B, T, D, H = 2, 5, 12, 3


def randomised(module: nn.Module, seed: int = 0) -> Any:
    """Every parameter off its special value."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
    return module


def vectors(seed: int = 1) -> Tensor:
    return torch.randn(B, T, D, generator=torch.Generator().manual_seed(seed))


def plain_attention(
    attention: Attention, x: Tensor, padding: Tensor | None, bias: Tensor | None
) -> Tensor:
    """Loops over rows, heads and queries; softmax over the keys that are no padding."""
    wq, wk, wv = attention.qkv.weight.chunk(3)
    q, v = x @ wq.T + attention.q_bias, x @ wv.T + attention.v_bias
    k = x @ wk.T if attention.k_bias is None else x @ wk.T + attention.k_bias
    out = torch.zeros_like(x)
    size = D // H
    for b in range(B):
        keys = [j for j in range(T) if padding is None or not padding[b, j]]
        for h in range(H):
            part = slice(h * size, (h + 1) * size)
            for i in range(T):
                logits = [
                    float(q[b, i, part] @ k[b, j, part]) / math.sqrt(size)
                    + (0.0 if bias is None else float(bias[0, h, i, j]))
                    for j in keys
                ]
                weights = torch.tensor(logits).softmax(0)
                out[b, i, part] = sum(w * v[b, j, part] for w, j in zip(weights, keys, strict=True))
    return out @ attention.proj.weight.T + attention.proj.bias


@pytest.mark.parametrize("key_bias", [True, False])
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("biased", [True, False])
@torch.no_grad()
def test_attention_is_a_softmax_over_the_keys(key_bias: bool, padded: bool, biased: bool) -> None:
    attention = randomised(Attention(replace(CONFIG, key_bias=key_bias)))
    assert (attention.k_bias is not None) == key_bias
    padding = torch.tensor([[0, 0, 0, 0, 0], [0, 0, 0, 1, 1]]).bool() if padded else None
    bias = torch.randn(1, H, T, T, generator=torch.Generator().manual_seed(2)) if biased else None
    x = vectors()
    found = attention(x, attention_mask(padding, bias))
    expected = plain_attention(attention, x, padding, bias)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_padding_alone_needs_no_mask_over_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    """A T x T mask would keep the fast kernels out and cost memory."""
    seen: list[tuple[int, ...] | None] = []
    fused = F.scaled_dot_product_attention

    def spy(*args: Tensor, attn_mask: Tensor | None, **rest: Any) -> Tensor:
        seen.append(None if attn_mask is None else tuple(attn_mask.shape))
        return fused(*args, attn_mask=attn_mask, **rest)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    attention = Attention(CONFIG)
    padding = torch.zeros(B, T, dtype=torch.bool)
    bias = torch.zeros(1, H, T, T)
    for mask in (None, attention_mask(padding, None), attention_mask(None, bias)):
        attention(vectors(), mask)
    assert seen == [None, (B, 1, 1, T), (1, H, T, T)]


def norm(module: nn.LayerNorm, x: Tensor) -> Tensor:
    return F.layer_norm(x, (D,), module.weight, module.bias, module.eps)


def feed_forward(block: Block, x: Tensor) -> Tensor:
    fc1, fc2 = block.mlp.fc1, block.mlp.fc2
    hidden = F.linear(x, fc1.weight, fc1.bias)
    exact_gelu = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    return F.linear(exact_gelu, fc2.weight, fc2.bias)


@torch.no_grad()
def test_post_norm_adds_then_normalises() -> None:
    block, x = randomised(Block(CONFIG)), vectors()
    after = norm(block.norm1, x + block.attention(x, None))
    ffn = feed_forward(block, after)
    found = block(x)
    torch.testing.assert_close(found.ffn, ffn, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.x, norm(block.norm2, after + ffn), atol=1e-5, rtol=0)


@torch.no_grad()
def test_pre_norm_normalises_then_adds_scaled_branches() -> None:
    config = replace(CONFIG, norm_order="pre", layer_scale=0.1, norm_eps=1e-6)
    block, x = randomised(Block(config)), vectors()
    assert block.norm1.eps == block.norm2.eps == 1e-6
    after = x + block.gain1.gamma * block.attention(norm(block.norm1, x), None)
    ffn = block.gain2.gamma * feed_forward(block, norm(block.norm2, after))
    found = block(x)
    torch.testing.assert_close(found.ffn, ffn, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.x, after + ffn, atol=1e-5, rtol=0)


def test_layer_scale_starts_at_its_value_or_is_absent() -> None:
    block = Block(replace(CONFIG, layer_scale=1e-4))
    assert (block.gain1.gamma == 1e-4).all()
    assert (block.gain2.gamma == 1e-4).all()
    assert not any("gain" in name for name, _ in Block(CONFIG).named_parameters())


def without(block: Block, branch: str) -> Block:
    """The block with a branch that gives nothing."""
    last = block.attention.proj if branch == "attention" else block.mlp.fc2
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return block


@torch.no_grad()
@pytest.mark.parametrize("order", ["pre", "post"])
def test_drop_path_leaves_out_branches_of_whole_samples(order: str) -> None:
    config = replace(CONFIG, norm_order=order, layer_scale=0.1)
    x = torch.randn(4, T, D, generator=torch.Generator().manual_seed(1))
    bias = torch.randn(4, H, T, T, generator=torch.Generator().manual_seed(2))
    kept = Kept(torch.tensor([2, 0]), torch.tensor([3, 1, 0]))
    found = randomised(Block(config))(x, bias, kept).x
    scaled = randomised(Block(config))
    scaled.gain1.gamma *= 4 / 2  # branches are as large on average as if there were all
    scaled.gain2.gamma *= 4 / 3
    for row in range(4):
        block = copy.deepcopy(scaled)
        for branch, rows in kept._asdict().items():
            if row not in rows:
                without(block, branch)
        expected = block(x[row : row + 1], bias[row : row + 1]).x[0]
        torch.testing.assert_close(found[row], expected, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("drops", [False, True])
@pytest.mark.parametrize("order", ["pre", "post"])
def test_only_some_places_are_the_same_places_of_all(order: str, drops: bool) -> None:
    block = randomised(Block(replace(CONFIG, norm_order=order)))
    x, places = vectors(), torch.tensor([[0, 3, 4], [2, 2, 1]])
    padding = torch.tensor([[0, 0, 0, 0, 0], [0, 0, 0, 1, 1]]).bool()
    kept = Kept(torch.tensor([1]), torch.tensor([0])) if drops else None
    mask = attention_mask(padding, None)
    whole, some = block(x, mask, kept), block(x, mask, kept, places)
    for row in range(B):
        torch.testing.assert_close(some.x[row], whole.x[row, places[row]], atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["dropout", "attention_dropout", "activation_dropout"])
def test_each_dropout_works_in_training_only(kind: str) -> None:
    block = randomised(Block(replace(CONFIG, **{kind: 0.5})))
    reference, x = randomised(Block(CONFIG)), vectors()
    assert not torch.allclose(block.train()(x).x, reference(x).x)
    assert torch.equal(block.eval()(x).x, reference.eval()(x).x)


@torch.no_grad()
def test_targets_are_taken_before_the_output_dropout() -> None:
    block = randomised(Block(replace(CONFIG, dropout=0.9))).train()
    assert (block(vectors()).ffn != 0).all()


def test_no_gradient_comes_from_what_targets_are_taken_from() -> None:
    """A compiled backward pass would take one of zeros for it."""
    found = Block(CONFIG)(vectors())
    assert found.x.requires_grad
    assert not found.ffn.requires_grad
