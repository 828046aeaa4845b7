"""The two strategies: what the student sees, how often it runs, and that they compute the same."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
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
    row_of,
)
from modality_cases.audio import RATE
from tiny import write_shards
from torch import Tensor

from selfdistill.config import RunConfig
from selfdistill.data.loader import Source, training_batches
from selfdistill.data.shards import ShardSet
from selfdistill.modalities.audio.encoder import frame_count
from selfdistill.modalities.backbone import Backbone, build_backbone
from selfdistill.modalities.base import load_modality
from selfdistill.objective.data2vec import Data2Vec
from selfdistill.objective.predictor import Visible
from selfdistill.types import Batch, Masks

Make = Callable[..., RunConfig]
SILENT = {"mask_noise_std": 0.0, "width": 8, "groups": 4, "layers": 2, "kernel": 3}
BOTH = [(case, False) for case in CASES]
BOTH += [(case, True) for case in CASES if modality_of(case) in PADDED]


def doubled(batch: Batch) -> Batch:
    inputs = batch.inputs.double() if batch.inputs.is_floating_point() else batch.inputs
    return replace(batch, inputs=inputs)


def seen_by_dense(student: Backbone, batch: Batch) -> tuple[Tensor, Tensor]:
    """Outputs at prefix and visible tokens where no token may look at a masked one."""
    encoder, masks = student.encoder, batch.masks
    assert masks is not None
    local = encoder.embed(batch.inputs, batch.lengths)
    tokens = encoder.locate(encoder.fill(local, masks))
    hidden = masks.masked if tokens.padding is None else masks.masked | tokens.padding
    x, prefix = student(replace(tokens, padding=hidden)), encoder.num_prefix_tokens
    at_visible = [row[places] for row, places in zip(x[:, prefix:], masks.visible, strict=True)]
    return x[:, :prefix], torch.stack(at_visible)


def seen_by_visible(student: Backbone, batch: Batch) -> tuple[Tensor, Tensor]:
    encoder = student.encoder
    assert batch.masks is not None
    local = encoder.embed(batch.inputs, batch.lengths)
    x, prefix = student(encoder.keep(local, batch.masks)), encoder.num_prefix_tokens
    return x[:, :prefix], x[:, prefix:]


@pytest.mark.parametrize("prenet_depth", [0, 1])
@pytest.mark.parametrize(("case", "padded"), BOTH)
def test_both_strategies_encode_what_is_visible_alike(
    case: str, padded: bool, prenet_depth: int, tiny_config: Make
) -> None:
    """In outputs and gradients, up to rounding in float64."""
    encoder = {**CASES[case].get("encoder", {}), "prenet_depth": prenet_depth}
    dense, visible = (
        build_backbone(config_of(case, tiny_config, strategy=s, encoder=encoder)).double()
        for s in ("dense", "visible")
    )
    weights = dict(randomised(dense).named_parameters())
    if modality_of(case) == "audio":
        weights["encoder.mask_token"].data.zero_()
    result = visible.load_state_dict(weights, strict=False)
    own = [] if modality_of(case) == "text" else ["encoder.mask_token"]
    assert (result.missing_keys, result.unexpected_keys) == ([], own)
    batch = doubled(batch_of(modality_of(case), padded=padded))
    assert batch.masks is not None
    real = really_visible(batch.masks)
    found = []
    for student, run in ((dense, seen_by_dense), (visible, seen_by_visible)):
        prefix, x = run(student, batch)
        generator = torch.Generator().manual_seed(5)
        pull = [torch.randn(part.shape, generator=generator).double() for part in (prefix, x)]
        ((prefix * pull[0]).sum() + (x * pull[1])[real].sum()).backward()
        gradients = {n: p.grad for n, p in student.named_parameters() if n not in own}
        found.append((prefix, x[real], gradients))
    (prefix, x, gradients), (its_prefix, its_x, its_gradients) = found
    torch.testing.assert_close(its_prefix, prefix, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(its_x, x, rtol=1e-9, atol=1e-9)
    for name, gradient in gradients.items():
        assert gradient is not None, name
        torch.testing.assert_close(its_gradients[name], gradient, rtol=1e-8, atol=1e-8)
        known = name.endswith("k_bias") or gradient.numel() == 0
        assert known or gradient.abs().max() > 1e-6, name


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_predictions_do_not_depend_on_the_other_rows(case: str, tiny_config: Make) -> None:
    """Of rows of other lengths, or with other numbers of visible tokens."""
    modality, masks = modality_of(case), 2
    config = config_of(case, tiny_config, strategy="visible", decoder=SILENT)
    model, batch = randomised(Data2Vec(config)), batch_of(modality, masks)
    student, predictor = model.student[modality], model.predictors[modality]

    def predicted(batch: Batch) -> list[Tensor]:
        assert batch.masks is not None
        local = student.encoder.embed(batch.inputs, batch.lengths)
        found = predictor(student, local, batch.masks).masked
        return [x[w.bool()] for x, w in zip(found, batch.masks.weight, strict=True)]

    together = predicted(batch)
    assert len({len(row) for row in together}) > 1
    alone = [row for i in range(3) for row in predicted(row_of(batch, modality, i))]
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def count_rows(module: torch.nn.Module, rows: list[int]) -> None:
    module.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))


@pytest.mark.parametrize("strategy", ["dense", "visible"])
@pytest.mark.parametrize("scope", ["all", "all_but_local", "blocks"])
@pytest.mark.parametrize("case", ["audio", "image, relative", "text"])
def test_each_sample_is_embedded_and_taught_once(
    case: str, scope: str, strategy: str, tiny_config: Make
) -> None:
    """And read by the student once per mask."""
    changes: dict[str, Any] = {"strategy": strategy, "teacher": {"scope": scope}}
    model, modality = Data2Vec(config_of(case, tiny_config, **changes)), modality_of(case)
    rows: dict[str, list[int]] = {}
    for name, part in (
        ("student's features", model.student.encoders[modality].local),
        ("student", model.student.trunk.blocks[0]),
        ("teacher", model.teacher.trunk.blocks[0]),
    ):
        count_rows(part, rows.setdefault(name, []))
    if scope == "all":
        count_rows(model.teacher.encoders[modality].local, rows.setdefault("its features", []))
    step = model({modality: batch_of(modality, num_masks=4)})[modality]
    expected = {"student's features": [3], "student": [12], "teacher": [3]}
    assert rows == expected | ({"its features": [3]} if scope == "all" else {})
    assert step.loss.requires_grad


KINDS = [
    ("audio", {"kind": "spans", "mask_length": 3}),
    ("audio", {"kind": "painted", "mask_length": 3, "mask_prob": 0.5, "mask_prob_adjust": 0.2}),
    ("text", {"kind": "spans", "mask_length": 2}),
    ("text", {"kind": "tokens", "mask_prob": 0.5}),
]


def loaded(config: RunConfig, folder: Path) -> Batch:
    """Eight samples of the loader."""
    modality = load_modality(config.modality)
    train = write_shards(folder / "shards", config.modality)
    config = replace(config, run_dir=str(folder), data=replace(config.data, train=train))
    pipeline = modality.build_pipeline(modality.prepare(config))
    shards = ShardSet([Path(path) for path in train], pipeline.extensions)
    sources = {config.modality: Source(shards, pipeline, 8)}
    run = {"accumulate": 1, "rank": 0, "world_size": 1, "start_step": 0, "steps": 1, "workers": 0}
    ((micro_batch,),) = training_batches(sources, seed=0, **run)
    return micro_batch[config.modality].batch


@pytest.mark.parametrize(("modality", "mask"), KINDS)
def test_padding_is_neither_kept_nor_masked_nor_predicted(
    modality: str, mask: dict[str, Any], tiny_config: Make, tmp_path: Path
) -> None:
    own = {"input": {"sampling_rate": RATE}} if modality == "audio" else {}
    changes = own | {"encoder": {"vocab_size": 32}} if modality == "text" else own
    config = tiny_config(
        modality, strategy="visible", mask={**mask, "num_masks": 3}, decoder=SILENT, **changes
    )
    batch = loaded(config, tmp_path)
    masks, lengths = batch.masks, batch.lengths
    assert masks is not None
    assert lengths is not None
    tokens = frame_count(lengths, config.encoder.conv_layers) if modality == "audio" else lengths
    valid = tokens.repeat_interleave(3)
    assert len(set(tokens.tolist())) > 2
    real = really_visible(masks)
    for row, count in enumerate(valid.tolist()):
        seen = masks.visible[row][real[row]].tolist()
        hidden = masks.index[row][masks.weight[row].bool()].tolist()
        assert sorted(seen + hidden) == list(range(count))
        assert seen
        assert hidden
    model = Data2Vec(config)
    encoder, reads = model.student.encoders[modality], []
    model.student.trunk.blocks[0].register_forward_hook(
        lambda _, inputs, __: reads.append(inputs[0].shape[1])
    )
    kept = encoder.keep(encoder.embed(batch.inputs, lengths), masks)
    assert kept.padding is not None
    assert torch.equal(kept.padding, ~real)
    step = model({modality: batch})[modality]
    assert reads == [int(real.sum(1).max())]
    assert float(step.tokens) == float(step.predictions.size) == int(masks.masked.sum())


def test_the_decoder_works_on_the_encoder_s_grid(tiny_config: Make) -> None:
    grids = {}
    for case in ("audio", "image, sincos", "text"):
        config = config_of(case, tiny_config, strategy="visible", decoder=SILENT)
        predictor = Data2Vec(config).predictors[modality_of(case)]
        assert isinstance(predictor, Visible)
        grids[case] = predictor.decoder.convs.grid
    assert grids == {"audio": None, "image, sincos": (4, 4), "text": None}


@torch.no_grad()
def test_noise_is_drawn_anew_and_changes_predictions(tiny_config: Make) -> None:
    decoder = SILENT | {"mask_noise_std": 1.0}
    model = Data2Vec(config_of("image, sincos", tiny_config, strategy="visible", decoder=decoder))
    batch = batch_of("image")
    assert isinstance(batch.masks, Masks)
    local = model.student.encoders["image"].embed(batch.inputs, None)
    predictor, student = model.predictors["image"], model.student["image"]
    first, second = (predictor(student, local, batch.masks) for _ in range(2))
    assert not torch.allclose(first.masked, second.masked)
    assert torch.equal(first.prefix, second.prefix)
