"""The convolutions against loops over tokens."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from selfdistill.models.conv import ConvStack, strided_conv

B, T = 3, 7
LENGTHS = [7, 4, 1]
PADDING = torch.arange(T) >= torch.tensor(LENGTHS)[:, None]
KERNELS = [1, 3, 4, 5, 6]


def vectors(tokens: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(B, tokens, width, generator=torch.Generator().manual_seed(seed))


def grouped(weight: Tensor, x: Tensor, groups: int) -> Tensor:
    """One kernel's column [outer, inner / groups] on x [inner]."""
    parts = zip(weight.chunk(groups), x.chunk(groups), strict=True)
    return torch.cat([matrix @ part for matrix, part in parts])


def normed(x: Tensor) -> Tensor:
    x = (x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt()
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def layer_in_time(conv: nn.Conv1d, x: Tensor) -> Tensor:
    """x [T, inner] to [T, outer]; beyond the ends there is nothing."""
    kernel = conv.kernel_size[0]
    rows = []
    for t in range(len(x)):
        y = conv.bias.clone()
        for k in range(kernel):
            at = t + k - kernel // 2
            if 0 <= at < len(x):
                y += grouped(conv.weight[:, :, k], x[at], conv.groups)
        rows.append(normed(y))
    return torch.stack(rows)


def layer_on_grid(conv: nn.Conv2d, x: Tensor, grid: tuple[int, int]) -> Tensor:
    """x [height * width, inner], row by row."""
    kernel, (height, width) = conv.kernel_size[0], grid
    tokens = []
    for row in range(height):
        for column in range(width):
            y = conv.bias.clone()
            for i in range(kernel):
                for j in range(kernel):
                    down, right = row + i - kernel // 2, column + j - kernel // 2
                    if 0 <= down < height and 0 <= right < width:
                        token = x[down * width + right]
                        y += grouped(conv.weight[:, :, i, j], token, conv.groups)
            tokens.append(normed(y))
    return torch.stack(tokens)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("kernel", KERNELS)
@torch.no_grad()
def test_in_time(kernel: int, residual: bool) -> None:
    """Layers of other widths have no residual, those of equal ones where it is asked for."""
    torch.manual_seed(0)
    stack = ConvStack([8, 4, 4, 4], kernel, groups=2, residual=residual)
    x = vectors(T, 8)
    found = stack(x)
    assert found.shape == (B, T, 4)
    for row, result in zip(x, found, strict=True):
        for number, conv in enumerate(stack.convs):
            y = layer_in_time(conv, row)
            row = row + y if residual and number > 0 else y
        torch.testing.assert_close(result, row, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("kernel", [1, 2, 3, 4])
@pytest.mark.parametrize("grid", [(3, 3), (2, 4)])
@torch.no_grad()
def test_on_a_grid(grid: tuple[int, int], kernel: int, residual: bool) -> None:
    torch.manual_seed(0)
    stack = ConvStack([8, 4, 4], kernel, groups=4, residual=residual, grid=grid)
    x = vectors(grid[0] * grid[1], 8)
    found = stack(x)
    for row, result in zip(x, found, strict=True):
        first = layer_on_grid(stack.convs[0], row, grid)
        second = layer_on_grid(stack.convs[1], first, grid)
        expected = first + second if residual else second
        torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("kernel", KERNELS)
@torch.no_grad()
def test_a_padded_row_gives_what_it_gives_alone(kernel: int, residual: bool) -> None:
    torch.manual_seed(0)
    stack = ConvStack([4, 4, 4, 4], kernel, groups=2, residual=residual)
    x = vectors(T, 4)
    found, leaking = stack(x, PADDING), stack(x)
    for row, length in enumerate(LENGTHS):
        alone = stack(x[row : row + 1, :length])[0]
        torch.testing.assert_close(found[row, :length], alone, atol=1e-6, rtol=1e-5)
        reached = length < T and kernel > 1
        assert torch.allclose(leaking[row, :length], alone, atol=1e-4) != reached


def test_its_norms_have_nothing_to_learn() -> None:
    stack = ConvStack([8, 4, 4], 3, groups=2, residual=True)
    names = {f"convs.{layer}.{part}" for layer in range(2) for part in ("bias", "weight")}
    assert {name for name, _ in stack.named_parameters()} == names


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("kernel", "stride", "channels"),
    [(10, 5, 1), (3, 2, 4), (2, 2, 4), (4, 4, 2), (3, 1, 2), (1, 1, 3), (2, 3, 2), (7, 3, 2)],
)
@pytest.mark.parametrize("more", range(4))
def test_a_strided_convolution_is_torchs(
    kernel: int, stride: int, channels: int, bias: bool, more: int
) -> None:
    chance = torch.Generator().manual_seed(kernel + stride)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=chance, dtype=torch.float64, requires_grad=True)

    x, weight = random(B, kernel + 2 * stride + more, channels), random(5, channels, kernel)
    inputs = (x, weight, random(5)) if bias else (x, weight)
    ours = strided_conv(x, weight, inputs[2] if bias else None, stride)
    theirs = F.conv1d(x.mT, weight, inputs[2] if bias else None, stride).mT
    torch.testing.assert_close(ours, theirs)
    along = torch.randn(ours.shape, generator=chance, dtype=torch.float64)
    for found, expected in zip(
        torch.autograd.grad(ours, inputs, along),
        torch.autograd.grad(theirs, inputs, along),
        strict=True,
    ):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (2, 2), (7, 3), (2, 3)])
def test_a_strided_convolution_of_what_lies_otherwise_in_memory(kernel: int, stride: int) -> None:
    chance = torch.Generator().manual_seed(2)
    weight = torch.randn(5, 4, kernel, generator=chance)
    apart = torch.randn(B, 4, 17, generator=chance).mT.requires_grad_()
    together = apart.detach().contiguous().requires_grad_()
    for x in (apart, together):
        strided_conv(x, weight, None, stride).square().sum().backward()
    torch.testing.assert_close(apart.grad, together.grad)


def test_a_strided_convolution_multiplies_in_half_under_autocast() -> None:
    x, weight = vectors(9, 4), torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert strided_conv(x, weight, None, 2).dtype == torch.bfloat16


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_strided_convolution_gives_gradients_where_it_is_compiled(backend: str) -> None:
    """What changes in place is where torch errs: 2.11 dropped gradients of a result that does, and
    2.14 loses what is added to windows of ``unfold``."""

    def gradients(convolve: Any) -> tuple[torch.Tensor, ...]:
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(2, 9, 4, generator=generator, requires_grad=True)
        weight = torch.randn(5, 4, 3, generator=generator, requires_grad=True)
        return torch.autograd.grad(convolve(x, weight, None, 2).square().sum(), (x, weight))

    torch.compiler.reset()
    compiled = torch.compile(strided_conv, backend=backend)
    for found, expected in zip(gradients(compiled), gradients(strided_conv), strict=True):
        torch.testing.assert_close(found, expected)
