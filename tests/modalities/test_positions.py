"""All kinds of positions: what is kept, its biases, and the blocks of a modality's own."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from encoder_cases import (
    CASES,
    PADDED,
    batch_of,
    config_of,
    modality_of,
    randomised,
    really_visible,
)
from torch import Tensor

from selfdistill.config import RunConfig
from selfdistill.modalities.backbone import Backbone, build_backbone
from selfdistill.models.block import Block
from selfdistill.types import Tokens

Make = Callable[..., RunConfig]
BOTH = [(case, False) for case in CASES]
BOTH += [(case, True) for case in CASES if modality_of(case) in PADDED]
PER_BLOCK = {"audio, alibi per layer", "image, block_relative"}
SHARED = {
    "audio, alibi",
    "audio, alibi of one scale",
    "image, relative",
    "image, relative without a class token",
}


def build(case: str, tiny_config: Make, **encoder: Any) -> Backbone:
    sections = {**CASES[case].get("encoder", {}), **encoder}
    config = config_of(case, tiny_config, strategy="visible", encoder=sections)
    torch.manual_seed(0)
    return randomised(build_backbone(config)).eval()


def everywhere(length: int) -> Tensor:
    return torch.arange(length)[None]


@pytest.mark.parametrize("num_masks", [1, 3])
@pytest.mark.parametrize(("case", "padded"), [c for c in BOTH if modality_of(c[0]) != "audio"])
@torch.no_grad()
def test_what_is_kept_is_what_stands_there_in_the_whole(
    case: str, padded: bool, num_masks: int, tiny_config: Make
) -> None:
    encoder = build(case, tiny_config).encoder
    batch = batch_of(modality_of(case), num_masks, padded)
    masks = batch.masks
    assert masks is not None
    local = encoder.embed(batch.inputs, batch.lengths)
    whole = encoder.contextualise(local).x
    kept = encoder.keep(local, masks)
    found, prefix = encoder.enter(kept), encoder.num_prefix_tokens
    assert kept.places is not None
    assert torch.equal(kept.places, masks.visible)
    assert kept.x.shape[:2] == masks.visible.shape
    assert found.x.shape[1] == prefix + masks.visible.shape[1]
    for row, real in enumerate(really_visible(masks)):
        sample = whole[row // num_masks]
        places = prefix + masks.visible[row, real]
        assert torch.equal(found.x[row, :prefix], sample[:prefix])
        torch.testing.assert_close(found.x[row, prefix:][real], sample[places])
        assert found.padding is not None
        assert torch.equal(found.padding[row, prefix:], ~real)
        assert not found.padding[row, :prefix].any()


@pytest.mark.parametrize("num_masks", [1, 3])
@pytest.mark.parametrize(("case", "padded"), [c for c in BOTH if modality_of(c[0]) == "audio"])
@torch.no_grad()
def test_sound_that_is_kept_has_the_positions_of_the_masked_sequence(
    case: str, padded: bool, num_masks: int, tiny_config: Make
) -> None:
    """The features themselves are not masked, but what is hidden must not reach their positions."""
    encoder = build(case, tiny_config).encoder
    batch = batch_of("audio", num_masks, padded)
    masks = batch.masks
    assert masks is not None
    local = encoder.embed(batch.inputs, batch.lengths)
    kept = encoder.keep(local, masks)
    assert torch.equal(kept.places, masks.visible)
    for row, real in enumerate(really_visible(masks)):
        sample, length = local.x[row // num_masks], masks.masked.shape[1]
        if local.padding is not None:
            length = int((~local.padding[row // num_masks]).sum())
        silent = sample[:length].masked_fill(masks.masked[row, :length, None], 0.0)
        positions = encoder.positions(silent[None])[0]
        places = masks.visible[row, real]
        expected = sample[places] + positions[places]
        torch.testing.assert_close(kept.x[row, real], expected, atol=1e-5, rtol=1e-5)
        assert kept.padding is not None
        assert torch.equal(kept.padding[row], ~real)


@pytest.mark.parametrize("num_masks", [1, 3])
@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_biases_are_those_of_the_whole_at_these_places(
    case: str, num_masks: int, tiny_config: Make
) -> None:
    encoder = build(case, tiny_config).encoder
    masks = batch_of(modality_of(case), num_masks, padded=False).masks
    assert masks is not None
    whole = encoder.attention_biases(everywhere(masks.masked.shape[1]))
    found = encoder.attention_biases(masks.visible)
    assert len(found) == len(whole) == (3 if case in PER_BLOCK else int(case in SHARED))
    prefix = encoder.num_prefix_tokens
    for part, full in zip(found, whole, strict=True):
        assert full.shape == (1, 4, *[prefix + masks.masked.shape[1]] * 2)
        for row, places in enumerate(masks.visible):
            tokens = torch.cat([torch.arange(prefix), prefix + places])
            assert torch.equal(part[row], full[0][:, tokens][:, :, tokens])
    assert not whole or all(part.any() for part in whole)
    assert len({tuple(part.flatten().tolist()) for part in whole}) == len(whole)


@pytest.mark.parametrize(("case", "padded"), BOTH)
@torch.no_grad()
def test_a_modality_s_own_blocks_come_first_with_their_own_biases(
    case: str, padded: bool, tiny_config: Make
) -> None:
    backbone = build(case, tiny_config, prenet_depth=2)
    encoder = backbone.encoder
    batch = batch_of(modality_of(case), 2, padded)
    assert batch.masks is not None
    kept = encoder.keep(encoder.embed(batch.inputs, batch.lengths), batch.masks)
    entered = encoder.enter(kept)
    biases = encoder.attention_biases(batch.masks.visible)
    blocks = [*encoder.prenet, *backbone.trunk.blocks]
    assert [isinstance(block, Block) for block in blocks] == [True] * 5
    assert len(biases) == (5 if case in PER_BLOCK else int(case in SHARED))
    allowed = None if entered.padding is None else ~entered.padding[:, None, None]
    x = entered.x
    for number, block in enumerate(blocks):
        mask = allowed
        if biases:
            mask = biases[number % len(biases)]
            mask = mask if allowed is None else mask.masked_fill(~allowed, float("-inf"))
        x = block(x, mask).x
    torch.testing.assert_close(backbone(kept), backbone.trunk.norm(x), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_run_without_own_blocks_has_none(tiny_config: Make) -> None:
    assert len(build("audio", tiny_config).encoder.prenet) == 0


@pytest.mark.parametrize("case", [*sorted(PER_BLOCK), *sorted(SHARED)])
@torch.no_grad()
def test_places_are_what_the_biases_are_made_of(case: str, tiny_config: Make) -> None:
    """Visible tokens are not neighbours just because nothing is left between them."""
    backbone = build(case, tiny_config)
    batch = batch_of(modality_of(case), padded=False)
    assert batch.masks is not None
    kept = backbone.encoder.keep(backbone.encoder.embed(batch.inputs, None), batch.masks)
    closed_up = Tokens(kept.x, kept.padding, everywhere(kept.x.shape[1]))
    assert not torch.allclose(backbone(kept), backbone(closed_up), atol=1e-3)
    without = Tokens(kept.x, kept.padding)
    torch.testing.assert_close(backbone(without), backbone(closed_up))


@pytest.mark.parametrize("prenet_depth", [0, 1])
@torch.no_grad()
def test_only_what_is_wanted_is_given_where_all_shared_blocks_are_left_out(
    prenet_depth: int, tiny_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = build("image, learned", tiny_config, prenet_depth=prenet_depth)
    backbone.trunk.train()
    monkeypatch.setattr(backbone.trunk.chance, "run", lambda: [])
    located = backbone.encoder.locate(backbone.encoder.embed(batch_of("image").inputs, None))
    found = backbone(located, torch.tensor([[3, 5]] * 3))
    torch.testing.assert_close(found, backbone(located)[:, [0, 4, 6]])
