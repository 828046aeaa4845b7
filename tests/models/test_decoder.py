"""The decoder against plain torch: what it sees, its projection, its noise."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from selfdistill.config import DecoderConfig
from selfdistill.models.decoder import Decoder
from selfdistill.types import Masks, Tokens

B, T, D = 2, 9, 8
SILENT = DecoderConfig(width=4, layers=2, kernel=3, groups=2, mask_noise_std=0.0)
GRIDS = [None, (3, 3)]


def masks_of(*rows: list[int], lengths: tuple[int, ...] | None = None) -> Masks:
    masked = torch.zeros(len(rows), T, dtype=torch.bool)
    for row, places in zip(masked, rows, strict=True):
        row[places] = True
    valid = None if lengths is None else torch.arange(T) < torch.tensor(lengths)[:, None]
    return Masks.from_bool(masked, valid)


MASKS = masks_of([1, 2, 8], [0, 4])


def vectors(seed: int = 0) -> Tensor:
    return torch.randn(B, T, D, generator=torch.Generator().manual_seed(seed))


def visible(x: Tensor, masks: Masks = MASKS) -> Tensor:
    return masks.keep(Tokens(x)).x


def build(config: DecoderConfig = SILENT, grid: tuple[int, int] | None = None) -> Decoder:
    torch.manual_seed(0)
    return Decoder(config, D, grid)


def linear_layers(decoder: Decoder) -> list[nn.Linear]:
    return [layer for layer in decoder.projection.modules() if isinstance(layer, nn.Linear)]


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("grid", GRIDS)
@torch.no_grad()
def test_it_predicts_at_the_masked_places_of_the_whole_sequence(
    grid: tuple[int, int] | None, layers: int
) -> None:
    config = replace(SILENT, projection_layers=layers, projection_ratio=1.5)
    decoder, x = build(config, grid), vectors()
    zeros = x.masked_fill(MASKS.masked[..., None], 0.0)
    hidden = decoder.convs(zeros)
    linear = linear_layers(decoder)
    assert [tuple(layer.weight.shape) for layer in linear] == {
        1: [(D, 4)],
        2: [(6, 4), (D, 6)],
        3: [(6, 4), (6, 6), (D, 6)],
    }[layers]
    for number, layer in enumerate(linear):
        if number:
            hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        hidden = hidden @ layer.weight.T + layer.bias
    found = decoder(visible(x), MASKS, None)
    assert found.shape == (B, 3, D)
    torch.testing.assert_close(found[0], hidden[0, [1, 2, 8]])
    torch.testing.assert_close(found[1, :2], hidden[1, [0, 4]])


@torch.no_grad()
def test_noise_stands_at_the_masked_places_alone() -> None:
    decoder, x = build(replace(SILENT, mask_noise_std=0.5)), vectors()
    drawn = torch.stack([decoder.fill_in(visible(x), MASKS) for _ in range(400)])
    at_visible, at_masked = drawn[:, ~MASKS.masked], drawn[:, MASKS.masked]
    assert torch.equal(at_visible, x[~MASKS.masked].expand_as(at_visible))
    assert float(at_masked.std()) == pytest.approx(0.5, rel=0.03)
    assert float(at_masked.mean()) == pytest.approx(0, abs=0.02)
    assert not torch.equal(at_masked[0], at_masked[1])


@torch.no_grad()
def test_dropout_is_on_what_the_student_saw() -> None:
    config = replace(SILENT, input_dropout=0.5, mask_noise_std=0.5)
    decoder, x = build(config), vectors()
    seen = decoder.fill_in(visible(x), MASKS)
    at_visible = seen[~MASKS.masked]
    dropped = at_visible == 0
    assert 0.2 < float(dropped.float().mean()) < 0.8
    assert torch.equal(at_visible[~dropped], 2 * x[~MASKS.masked][~dropped])
    assert seen[MASKS.masked].all()
    assert torch.equal(decoder.eval().fill_in(visible(x), MASKS)[~MASKS.masked], x[~MASKS.masked])


LENGTHS = (9, 5)
PADDED = masks_of([1, 2, 8], [0, 4], lengths=LENGTHS)
PADDING = torch.arange(T) >= torch.tensor(LENGTHS)[:, None]


@pytest.mark.parametrize("kernel", [3, 4])
@torch.no_grad()
def test_a_padded_row_gives_what_it_gives_alone(kernel: int) -> None:
    config = replace(SILENT, kernel=kernel, layers=3)
    decoder, x = build(config), vectors()
    masked = torch.tensor([[True, False, False, False, True]])
    alone = Masks.from_bool(masked)
    expected = decoder(alone.keep(Tokens(x[1:, :5])).x, alone, None)[0]
    found = decoder(visible(x, PADDED), PADDED, PADDING)[1, :2]
    torch.testing.assert_close(found, expected)
    leaking = Decoder(config, D, None, clears_padding=False)
    leaking.load_state_dict(decoder.state_dict())
    assert not torch.allclose(leaking(visible(x, PADDED), PADDED, PADDING)[1, :2], expected)


@torch.no_grad()
def test_what_fills_up_a_row_is_not_seen() -> None:
    decoder, x = build(), visible(vectors(), PADDED)
    assert PADDED.filler is not None
    found = decoder(x, PADDED, PADDING)
    changed = x.masked_fill(PADDED.filler[..., None], 100.0)
    assert torch.equal(decoder(changed, PADDED, PADDING), found)


@pytest.mark.parametrize("initializer", ["default", "bert"])
@torch.no_grad()
def test_first_weights(initializer: str) -> None:
    config = replace(SILENT, width=64, projection_layers=2, initializer=initializer)
    torch.manual_seed(0)
    decoder = Decoder(config, 64, None)
    for layer in linear_layers(decoder):
        uniform = 1 / math.sqrt(3 * layer.in_features)
        spread = 0.02 if initializer == "bert" else uniform
        assert float(layer.weight.std()) == pytest.approx(spread, rel=0.05)
        assert bool(layer.bias.any()) == (initializer == "default")
    for conv in decoder.convs.convs:
        assert float(conv.weight.std()) == pytest.approx(1 / math.sqrt(3 * 32 * 3), rel=0.05)


def test_it_is_computed_in_the_precision_that_comes_in() -> None:
    decoder = build(replace(SILENT, mask_noise_std=0.5)).double()
    assert decoder(visible(vectors().double()), MASKS, None).dtype == torch.float64
