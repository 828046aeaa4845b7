"""Attention that fades with distance, against the original's numbers and loops."""

from dataclasses import replace

import pytest
import torch

from selfdistill.modalities.audio.alibi import Alibi, slopes
from selfdistill.modalities.audio.config import AudioEncoderConfig

CONFIG = AudioEncoderConfig(alibi=True)
# of fairseq, commit 3d262bb25690e4eb2e7d3c1309b1e9c406ca4b99
SLOPES = {
    1: [0.00390625],
    2: [0.0625, 0.00390625],
    3: [0.0625, 0.00390625, 0.25],
    4: [0.25, 0.0625, 0.015625, 0.00390625],
    6: [0.25, 0.0625, 0.015625, 0.00390625, 0.5, 0.125],
    12: [
        *(0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.0078125, 0.00390625),
        *(0.7071067690849304, 0.3535533845424652, 0.1767766922712326, 0.0883883461356163),
    ],
}
TWO_HEADS = [
    [
        [0.0, -0.0625, -0.125, -0.1875],
        [-0.0625, 0.0, -0.0625, -0.125],
        [-0.125, -0.0625, 0.0, -0.0625],
        [-0.1875, -0.125, -0.0625, 0.0],
    ],
    [
        [0.0, -0.00390625, -0.0078125, -0.01171875],
        [-0.00390625, 0.0, -0.00390625, -0.0078125],
        [-0.0078125, -0.00390625, 0.0, -0.00390625],
        [-0.01171875, -0.0078125, -0.00390625, 0.0],
    ],
]


@pytest.mark.parametrize("heads", SLOPES)
def test_slopes_are_the_original_s(heads: int) -> None:
    assert slopes(heads) == pytest.approx(SLOPES[heads], rel=1e-7)


def test_the_bias_is_the_original_s() -> None:
    (bias,) = Alibi(CONFIG, heads=2, depth=3)(torch.arange(4)[None])
    torch.testing.assert_close(bias, torch.tensor([TWO_HEADS]))


@pytest.mark.parametrize("per_layer", [False, True])
@pytest.mark.parametrize("per_head", [False, True])
@torch.no_grad()
def test_scales_of_heads_and_layers(per_head: bool, per_layer: bool) -> None:
    config = replace(CONFIG, alibi_per_head=per_head, alibi_per_layer=per_layer)
    alibi, places = Alibi(config, heads=3, depth=4), torch.tensor([[0, 2, 3], [1, 1, 7]])
    assert alibi.scale.shape == (4 if per_layer else 1, 1, 3 if per_head else 1, 1, 1)
    assert (alibi.scale == 1).all()
    alibi.scale.copy_(torch.arange(1.0, 1 + alibi.scale.numel()).view(alibi.scale.shape))
    biases = alibi(places)
    assert len(biases) == (4 if per_layer else 1)
    for layer, bias in enumerate(biases):
        assert bias.shape == (2, 3, 3, 3)
        for head in range(3):
            scale = 1 + (3 * layer + head if per_head else layer)
            for row in range(2):
                for i, a in enumerate(places[row].tolist()):
                    for j, b in enumerate(places[row].tolist()):
                        expected = -SLOPES[3][head] * abs(a - b) * scale
                        assert float(bias[row, head, i, j]) == pytest.approx(expected)


def test_a_scale_below_zero_counts_as_zero() -> None:
    alibi = Alibi(CONFIG, heads=2, depth=1)
    with torch.no_grad():
        alibi.scale[0, 0, :, 0, 0] = torch.tensor([-0.5, 0.5])
    (bias,) = alibi(torch.arange(4)[None])
    torch.testing.assert_close(bias[0, 1], 0.5 * torch.tensor(TWO_HEADS[1]))
    assert not bias[0, 0].any()
    bias.sum().backward()
    assert alibi.scale.grad is not None
    assert alibi.scale.grad.flatten()[0] == 0
    assert alibi.scale.grad.flatten()[1] < 0


def test_slopes_are_no_part_of_the_weights() -> None:
    assert list(Alibi(CONFIG, heads=2, depth=1).state_dict()) == ["scale"]
