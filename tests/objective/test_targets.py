"""Targets: which layers, how normalised, and what padding may not do."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from selfdistill.config import ObjectiveConfig
from selfdistill.models.block import BlockOutput
from selfdistill.objective.targets import average_layers, layer_indices, normalise

B, T, D, DEPTH = 3, 7, 5, 4
PADDING = torch.arange(T) >= torch.tensor([7, 4, 2])[:, None]


def layers(seed: int = 0) -> list[BlockOutput]:
    generator = torch.Generator().manual_seed(seed)
    return [
        BlockOutput(*(3 * torch.randn(2, B, T, D, generator=generator) + 1)) for _ in range(DEPTH)
    ]


@pytest.mark.parametrize("kind", ["layer", "instance"])
def test_a_padded_row_is_normalised_as_if_alone(kind: str) -> None:
    x = layers()[0].x
    found = normalise(x, [kind], PADDING)
    for row, padding, expected in zip(found, PADDING, x, strict=True):
        alone = normalise(expected[None, ~padding], [kind], None)[0]
        torch.testing.assert_close(row[~padding], alone)


def test_batch_norm_counts_the_valid_tokens_of_all_rows() -> None:
    x = layers()[0].x
    valid = x[~PADDING]  # [tokens, D]
    expected = (valid - valid.mean(0)) / (valid.var(0, correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(normalise(x, ["batch"], PADDING)[~PADDING], expected)


def test_without_padding_the_norms_are_torch_s_own() -> None:
    x = layers()[0].x
    channels_first = x.mT  # what torch's norms over time expect
    expected = {
        "layer": F.layer_norm(x, (D,)),
        "instance": F.instance_norm(channels_first).mT,
        "batch": F.batch_norm(channels_first, None, None, training=True).mT,
    }
    for kind, wanted in expected.items():
        torch.testing.assert_close(normalise(x, [kind], None), wanted)


def test_norms_are_applied_in_order() -> None:
    x = layers()[0].x
    both = normalise(x, ["instance", "layer"], PADDING)
    torch.testing.assert_close(
        both, normalise(normalise(x, ["instance"], PADDING), ["layer"], PADDING)
    )
    assert not torch.allclose(both, normalise(x, ["layer", "instance"], PADDING))


def test_unmasked_statistics_are_what_the_originals_had() -> None:
    x = layers()[0].x
    leaked = normalise(x, ["instance"], None)
    torch.testing.assert_close(leaked, F.instance_norm(x.mT).mT)
    assert not torch.allclose(leaked[1, :4], normalise(x, ["instance"], PADDING)[1, :4], atol=0.05)


def naive(outputs: list[Tensor], config: ObjectiveConfig, padding: Tensor | None) -> Tensor:
    normalised = [normalise(x, config.layer_norms, padding) for x in outputs]
    return normalise(torch.stack(normalised).mean(0), config.target_norms, padding)


@pytest.mark.parametrize(
    ("settings", "source", "chosen"),
    [
        ({"average_top_k_layers": 1}, "ffn", [3]),
        ({"average_top_k_layers": 3, "layer_norms": ["instance"]}, "ffn", [1, 2, 3]),
        ({"average_top_k_layers": 4, "target_from": "block"}, "x", [0, 1, 2, 3]),
        (
            {
                "target_layers": [0, 2],
                "target_from": "block",
                "layer_norms": ["layer"],
                "target_norms": ["layer"],
            },
            "x",
            [0, 2],
        ),
    ],
)
def test_the_running_sum_is_the_mean_of_the_list(
    settings: dict[str, Any], source: str, chosen: list[int]
) -> None:
    config = ObjectiveConfig(**settings)
    assert layer_indices(config, DEPTH) == chosen
    outputs = layers()
    found = average_layers(iter(outputs), config, DEPTH, PADDING)
    expected = naive([getattr(outputs[i], source) for i in chosen], config, PADDING)
    torch.testing.assert_close(found, expected)


def test_layers_above_the_last_wanted_one_are_not_run() -> None:
    asked = []

    def outputs() -> Iterator[BlockOutput]:
        for index, output in enumerate(layers()):
            asked.append(index)
            yield output

    average_layers(outputs(), ObjectiveConfig(target_layers=[0, 1]), DEPTH, None)
    assert asked == [0, 1]


def test_targets_are_float32_whatever_the_layers_are() -> None:
    half = [BlockOutput(x.bfloat16(), ffn.bfloat16()) for x, ffn in layers()]
    config = ObjectiveConfig(average_top_k_layers=2, layer_norms=["instance"])
    assert average_layers(half, config, DEPTH, None).dtype == torch.float32


def test_layers_in_half_are_normalised_as_float32() -> None:
    half = [BlockOutput(x.bfloat16(), ffn.bfloat16()) for x, ffn in layers()]
    whole = [BlockOutput(x.float(), ffn.float()) for x, ffn in half]
    config = ObjectiveConfig(average_top_k_layers=2, layer_norms=["instance"])
    found, expected = (average_layers(made, config, DEPTH, None) for made in (half, whole))
    assert torch.equal(found, expected)


def test_padding_has_no_part_in_the_norms_of_the_average() -> None:
    config = ObjectiveConfig(average_top_k_layers=1, layer_norms=[], target_norms=["instance"])
    found = average_layers(layers(), config, DEPTH, PADDING)
    torch.testing.assert_close(found, normalise(layers()[-1].ffn, ["instance"], PADDING))


def test_constant_channels_stay_finite() -> None:
    x = torch.ones(2, 4, D)
    for kind in ("layer", "instance", "batch"):
        assert torch.equal(normalise(x, [kind], None), torch.zeros(2, 4, D))
