"""Attention in tiles against plain formulas, and when it is taken."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from selfdistill.models import attention
from selfdistill.models.attention import attend, tiled_attention
from selfdistill.models.dropout import keep_chance
from selfdistill.models.trunk import attention_mask

B, H, T, D = 3, 4, 7, 5
HEAD = T * T * 8  # bytes of one head's logits in float64
TILES = {
    "less than one head": 1,
    "one head": HEAD,
    "three heads": 3 * HEAD,
    "one row": H * HEAD,
    "two rows": 2 * H * HEAD,
    "everything": 99 * H * HEAD,
}
MASKS = ("none", "padding", "learned", "of each row", "one for all heads", "learned and padding")


@pytest.fixture(params=TILES)
def tile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "TILE_BYTES", TILES[request.param])


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def vectors() -> list[Tensor]:
    """q, k, v as a block has them: views of one tensor, heads behind tokens."""
    return [random(B, T, H, D, seed=n).transpose(1, 2).requires_grad_() for n in range(3)]


def mask_of(kind: str) -> tuple[list[Tensor], Tensor | None]:
    """What is learned, and the mask made of it."""
    padding = torch.zeros(B, T, dtype=torch.bool)
    padding[1, -2:] = True
    if kind == "none":
        return [], None
    if kind == "padding":
        return [], attention_mask(padding, None)
    shapes = {"of each row": (B, H, T, T), "one for all heads": (1, 1, T, T)}
    bias = random(*shapes.get(kind, (1, H, T, T)), seed=3).requires_grad_()
    return [bias], attention_mask(padding if "padding" in kind else None, bias)


def plain(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, keeps: Tensor | float) -> Tensor:
    logits = q @ k.mT / math.sqrt(D)
    if mask is not None:
        logits = logits.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else logits + mask
    return (logits.softmax(-1) * keeps) @ v


@pytest.mark.usefixtures("tile")
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("kind", MASKS)
def test_tiles_are_the_whole(kind: str, dropout: float) -> None:
    (learned, mask), inputs = mask_of(kind), vectors()
    out, keeps = tiled_attention(*inputs, mask, dropout)
    scaled = keeps / keep_chance(dropout) if dropout else 1.0
    expected = plain(*inputs, mask, scaled)
    torch.testing.assert_close(out, expected)
    along = random(*out.shape, seed=4)
    found = torch.autograd.grad(out, [*inputs, *learned], along, retain_graph=True)
    wanted = torch.autograd.grad(expected, [*inputs, *learned], along)
    torch.testing.assert_close(found, wanted)


@pytest.mark.usefixtures("tile")
def test_dropout_keeps_each_weight_with_its_chance() -> None:
    q = torch.zeros(64, H, 32, D)
    _, keeps = tiled_attention(q, q, q, None, 0.3)
    share = keeps.double().mean(dim=(0, 2, 3))  # over 65,536: six deviations are 0.011
    torch.testing.assert_close(share, torch.full((H,), 0.7, dtype=torch.double), atol=0.011, rtol=0)
    assert not torch.equal(keeps[0], keeps[1])
    torch.manual_seed(5)
    again = tiled_attention(q, q, q, None, 0.3)[1]
    torch.manual_seed(5)
    assert torch.equal(again, tiled_attention(q, q, q, None, 0.3)[1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("biased", [False, True])
def test_a_row_of_padding_alone_is_a_number(biased: bool, dtype: torch.dtype) -> None:
    q = random(B, H, T, D, dtype=dtype)
    padding = torch.tensor([[False] * T, [True] * T, [False] * T])
    bias = random(1, H, T, T, dtype=torch.float32) if biased else None
    out, _ = tiled_attention(q, q, q, attention_mask(padding, bias), 0.0)
    assert out.isfinite().all()
    q = q.double()
    tolerance = {torch.float64: 1e-6, torch.bfloat16: 0.03}[dtype]
    expected = plain(q, q, q, bias, 1.0)
    torch.testing.assert_close(out[::2].double(), expected[::2], atol=tolerance, rtol=0)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_it_is_an_operator_that_torch_can_compile(dropout: float) -> None:
    inputs = vectors()
    (bias,), mask = mask_of("learned")
    if not dropout:  # what is drawn differs from call to call
        torch.library.opcheck(tiled_attention, (*inputs, mask, dropout))

    def whole(*args: Any) -> Tensor:
        return tiled_attention(*args, dropout)[0]

    compiled = torch.compile(whole, backend="aot_eager", fullgraph=True)
    results = []
    for function in (whole, compiled):
        torch.manual_seed(0)
        out = function(*inputs, mask)
        results.append([out, *torch.autograd.grad(out.sum(), [*inputs, bias])])
    torch.testing.assert_close(*results)


@pytest.mark.usefixtures("tile")
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("kind", ["none", "padding", "learned", "learned and padding"])
def test_half_precision_is_about_as_exact_as_the_formula_under_autocast(
    kind: str, dropout: float
) -> None:
    """A learned mask and its gradient stay in float32."""
    (learned, _), exact = mask_of(kind), vectors()
    half = [x.detach().bfloat16().requires_grad_() for x in exact]
    exact = [x.detach().double().requires_grad_() for x in half]
    learned = [x.detach().float().requires_grad_() for x in learned]
    padding = torch.arange(T).expand(B, T) >= T - 2 if "padding" in kind else None
    mask = attention_mask(padding, learned[0] if learned else None)
    out, keeps = tiled_attention(*half, mask, dropout)
    assert out.dtype == torch.bfloat16
    scaled = keeps / keep_chance(dropout) if dropout else 1.0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = plain(*half, mask, scaled)
    along = random(*out.shape, seed=4).bfloat16()
    ours, formula, truth = (
        [y, *torch.autograd.grad(y, [*inputs, *learned], along.to(y.dtype), retain_graph=True)]
        for y, inputs in (
            (out, half),
            (rounded, half),
            (plain(*exact, mask, scaled), exact),
        )
    )
    for found, usual, expected in zip(ours, formula, truth, strict=True):
        assert (found - expected).norm() < 2 * (usual - expected).norm()
        assert (found - expected).norm() < 0.01 * expected.norm()
    if learned:
        assert ours[-1].dtype == torch.float32


@pytest.mark.parametrize("kind", ["none", "padding", "learned and padding"])
@pytest.mark.parametrize("dropout", [0.0, 1e-6], ids=["torch's kernel", "ours"])
def test_in_half_precision_tokens_may_be_much_alike(
    dropout: float, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they are early in training: keys and values have a large mean then, by which roundings
    must not be multiplied. With it the gradient of queries would be wrong tenfold. Padding is alike
    too, but otherwise."""
    monkeypatch.setattr(attention, "TILE_BYTES", 1)
    _, mask = mask_of(kind)
    mask = mask if mask is None or mask.dtype == torch.bool else mask.detach().float()
    valid = torch.ones(B, 1, T, 1, dtype=torch.bool)
    if mask is not None:
        valid[1, :, -2:] = False
    means = [random(1, H, 1, D, seed=10 + number) for number in range(3)]
    half = [
        ((5 * mean + 0.1 * x) * valid).detach().bfloat16().requires_grad_()
        for mean, x in zip(means, vectors(), strict=True)
    ]
    exact = [x.detach().double().requires_grad_() for x in half]
    called = kernels(monkeypatch)
    out, truth = attend(*half, mask, dropout), plain(*exact, mask, 1.0)
    assert called == ["ours" if dropout else "torch's"]
    along = (random(*truth.shape, seed=4) * valid).bfloat16()
    found = torch.autograd.grad(out, half, along)
    wanted = torch.autograd.grad(truth, exact, along.double())
    for ours, expected in zip(found, wanted, strict=True):
        assert (ours - expected).norm() < 0.2 * expected.norm()


def kernels(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Is given the name of whatever ``attend`` calls."""
    called: list[str] = []

    def watched(name: str, function: Any) -> Any:
        return lambda *args, **rest: (called.append(name), function(*args, **rest))[1]

    monkeypatch.setattr(attention, "tiled_attention", watched("ours", tiled_attention))
    fused = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", watched("torch's", fused))
    return called


@pytest.mark.parametrize(
    ("tokens", "dtype", "learned", "dropout", "kernel"),
    [
        (300, torch.float32, False, 0.0, "torch's"),
        (300, torch.float32, False, 0.1, "ours"),
        (300, torch.float32, True, 0.0, "ours"),
        (30, torch.float32, True, 0.1, "torch's"),  # all logits fit a cache
        (300, torch.bfloat16, False, 0.0, "torch's"),
        (400, torch.bfloat16, True, 0.1, "ours"),
    ],
)
def test_what_torch_has_a_kernel_for_is_left_to_it(
    tokens: int,
    dtype: torch.dtype,
    learned: bool,
    dropout: float,
    kernel: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    called = kernels(monkeypatch)
    q = random(1, H, tokens, D, dtype=dtype)
    bias = random(1, H, tokens, tokens, dtype=dtype).requires_grad_() if learned else None
    attend(q, q, q, bias, dropout)
    assert called == [kernel]


def test_no_logits_are_kept() -> None:
    """But for one byte each with dropout: whether they were."""
    tokens = 300
    q, k, v = (random(1, H, tokens, D, seed=n, dtype=torch.float32) for n in range(3))
    bias = random(1, H, tokens, tokens, dtype=torch.float32).requires_grad_()
    logits = H * tokens * tokens

    def kept_bytes(dropout: float) -> int:
        sizes: list[int] = []

        def note(tensor: Tensor) -> Tensor:
            if tensor is not bias:
                sizes.append(tensor.nbytes)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            attend(q.requires_grad_(), k, v, bias, dropout)
        return sum(sizes)

    assert kept_bytes(0.0) < logits
    assert logits < kept_bytes(0.1) < 2 * logits
