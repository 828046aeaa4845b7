"""data2vec 2.0's recipes under configs/: published values, sizes, masks, and what is exported."""

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recipe_files import ROOT, load, values
from tokenizer_cases import corpus

from selfdistill.config import RunConfig
from selfdistill.hub.writer import why_not_exportable
from selfdistill.masking import row_keys
from selfdistill.modalities.base import load_modality
from selfdistill.modalities.text.training import train_tokenizer
from selfdistill.objective.data2vec import Data2Vec
from selfdistill.objective.state import of_predictor, of_student

FAITHFUL = [
    *(f"configs/audio/data2vec2_{size}.yaml" for size in ("base", "large")),
    *(f"configs/image/data2vec2_{size}.yaml" for size in ("base", "large", "huge")),
    *(f"configs/text/data2vec2_{size}.yaml" for size in ("base", "large")),
]
VISIBLE = {  # to the encoder's own recipe
    "configs/audio/base_visible.yaml": "configs/audio/base_librispeech.yaml",
    "configs/image/base_visible.yaml": "configs/image/base_imagenet.yaml",
    "configs/text/base_visible.yaml": "configs/text/base.yaml",
}
AUDIO_BASE, AUDIO_LARGE, IMAGE_BASE, IMAGE_LARGE, IMAGE_HUGE, TEXT_BASE, TEXT_LARGE = FAITHFUL
FRAMES = [[512, 10, 5], *[[512, 3, 2]] * 4, *[[512, 2, 2]] * 2]

# One column for each of FAITHFUL, in their order; or for audio, image, text; or one for all.
# None: the modality has no such key.
TABLE: dict[str, Sequence[Any]] = {
    "strategy": ["visible"],
    "encoder.conv_layers": [FRAMES, None, None],
    "encoder.position_width": [95, None, None],
    "encoder.position_depth": [5, None, None],
    "encoder.position_groups": [16, None, None],
    "encoder.alibi": [True, None, None],
    "encoder.alibi_per_head": [True, None, None],
    "encoder.alibi_per_layer": [False, None, None],
    "encoder.patch_size": [None, None, 16, 16, 14, None, None],
    "encoder.positions": [None, "sincos", None],
    "encoder.num_extra_tokens": [None, 1, None],
    "encoder.context_norm": [None, True, False],
    "encoder.prenet_depth": [0, 8, 2, 0, 0, 0, 0],
    "model.width": [768, 1024, 768, 1024, 1280, 768, 1024],
    "model.depth": [12, 16, 10, 24, 32, 12, 24],
    "model.heads": [12, 16, 12, 16, 16, 12, 16],
    "model.mlp_ratio": [4.0],
    "model.norm_order": ["post"],
    "model.norm_eps": [1e-5, 1e-6, 1e-5],
    "model.key_bias": [True],
    "model.layer_scale": [0.0],
    "model.initializer": ["bert"],
    "model.dropout": [0.1, 0.0, 0.1],
    "model.attention_dropout": [0.1, 0.0, 0.1],
    "model.activation_dropout": [0.0],
    "model.drop_path": [0.0],
    "model.layer_drop": [0.05, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
    "mask.num_masks": [8, 12, 16, 16, 16, 8, 8],
    "mask.kind": ["painted", "squares", "tokens"],
    "mask.mask_prob": [0.5, 0.55, 0.8, 0.75, 0.75, 0.48, 0.5],
    "mask.mask_prob_adjust": [0.05, 0.1, 0.07, 0.1, 0.1, None, None],
    "mask.mask_length": [5, 5, 3, 3, 3, None, None],
    "mask.inverse_mask": [None, True, None],
    "input.sampling_rate": [16_000, None, None],
    "input.min_seconds": [32_000 / 16_000, None, None],
    "input.max_seconds": [320_000 / 16_000, None, None],
    "input.normalize": [True, None, None],
    "input.size": [None, [224, 224], None],
    "input.crop_scale": [None, (0.2, 1.0), None],
    "input.crop_ratio": [None, (3 / 4, 4 / 3), None],
    "input.flip": [None, 0.5, None],
    "input.color_jitter": [None, 0.0, None],
    "input.max_tokens": [None, None, 512],
    "objective.average_top_k_layers": [8, 16, 10, 18, 24, 12, 24],
    "objective.target_from": ["ffn"],
    "objective.layer_norms": [*[["instance"]] * 6, ["layer"]],
    "objective.target_norms": [[], [], ["layer"], ["layer"], ["layer"], [], ["instance"]],
    "objective.loss_beta": [0.0],
    "objective.loss_scale": ["rsqrt_width", "rsqrt_width", 1.0],
    # 0.01 summed over the rows of a GPU's batch
    "objective.cls_loss": [0, 0, 0.01 * 16 * 16, 0.01 * 8 * 16, 0.01 * 8 * 16, 0, 0],
    "decoder.width": [384, 768, 768, 1024, 1024, 768, 768],
    "decoder.layers": [4, 4, 6, 3, 3, 5, 5],
    "decoder.kernel": [7, 7, 3, 5, 5, 9, 9],
    "decoder.groups": [16, 16, 1],
    "decoder.residual": [True, True, False],
    "decoder.projection_layers": [1, 1, 2],
    "decoder.projection_ratio": [2.0],
    "decoder.initializer": ["default", "default", "bert"],
    "decoder.input_dropout": [0.1, 0.0, 0.1],
    "decoder.mask_noise_std": [0.01],
    "teacher.scope": ["all_but_local", "all", "blocks"],
    "teacher.copied": [[]],
    "teacher.ema_decay": [0.999, 0.9997, 0.9998, 0.9998, 0.9998, 0.9999, 0.9999],
    "teacher.ema_end_decay": [0.99999, 1, 0.99999, 0.99999, 1, 0.99999, 0.99999],
    "teacher.ema_anneal_end_step": [75e3, 300e3, 100e3, 150e3, 300e3, 100e3, 100e3],
    "guard.after_steps": [5_000],
    "guard.min_target_std": [0.1, 0.0, 0.1],
    "guard.min_prediction_std": [0.01, 0.0, 0.01],
    "optim.betas": [(0.9, 0.98), (0.9, 0.95), (0.9, 0.98)],
    "optim.eps": [1e-6, 1e-8, 1e-6],
    "optim.weight_decay": [0.01, 0.05, 0.01],
    "optim.lr": [7.5e-4, 4e-4, 1e-3, 4e-4, 4e-4, 2e-4, 1e-4],
    "optim.min_lr": [0.0],
    "optim.schedule": ["cosine"],
    "optim.warmup_steps": [8_000, 10_000, 50_040, 50_040, 50_040, 4_000, 4_000],
    "optim.clip_norm": [0.0, 1.0, 4.0, 4.0, 4.0, 1.0, 1.0],
    "train.steps": [400e3, 600e3, 375_300, 375_300, 500e3, 1e6, 600e3],
    "data.batch_length": [500, 960, 0, 0, 0, 0, 0],
    "train.batch_size": [None, None, 16 * 16, 16 * 8, 32 * 8, 16 * 4, 32 * 2],
}


def build(file: str) -> tuple[RunConfig, Data2Vec]:
    config = load(file)
    with torch.device("meta"):
        return config, Data2Vec(config)


def column(cells: Sequence[Any], number: int) -> Any:
    if len(cells) == 1:
        return cells[0]
    return cells[number] if len(cells) == 7 else cells[[0, 0, 1, 1, 1, 2, 2][number]]


@pytest.mark.parametrize("number", range(7), ids=FAITHFUL)
def test_recipe_has_the_published_values(number: int) -> None:
    ours = values(FAITHFUL[number])
    published = {key: column(cells, number) for key, cells in TABLE.items()}
    published = {key: value for key, value in published.items() if value is not None}
    assert {key: ours.get(key, "no such key") for key in published} == published


@pytest.mark.parametrize("file", [*FAITHFUL, *VISIBLE])
def test_recipe_opens_with_its_commands(file: str) -> None:
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    assert re.match(r"# .*data2vec 2\.0.*", lines[0])
    assert "(arXiv 2212.07525)" in lines[0]
    name = file.removeprefix("configs/").removesuffix(".yaml")
    assert f"#   accelerate launch -m selfdistill pretrain {name}" in lines
    assert all(len(line) <= 100 for line in lines)


def block(width: int) -> int:
    """Parameters of a Transformer block whose MLP is four times as wide."""
    norms = 2 * 2 * width
    return norms + 4 * (width**2 + width) + 4 * width**2 + 4 * width + 4 * width**2 + width


def convs(widths: Sequence[int], kernel: int, groups: int) -> int:
    return sum(b * (a // groups) * kernel + b for a, b in pairwise(widths))


def linears(*widths: int) -> int:
    return sum((a + 1) * b for a, b in pairwise(widths))


def audio_encoder(width: int, heads: int, depth: int) -> int:
    features = sum(
        outer * inner * kernel + 2 * outer  # no bias, but a norm
        for inner, (outer, kernel, _) in zip([1, *[512] * 6], FRAMES, strict=True)
    )
    positions = convs([width] * 6, kernel=95 // 5, groups=16)
    projection, context_norm = 2 * 512 + linears(512, width), 2 * width
    return features + projection + positions + context_norm + heads + depth * block(width)


def image_encoder(plain_vit: int, width: int, patches: int) -> int:
    """From the size of a plain ViT without classifier, whose closing norm stands in for ours before
    the blocks, but which has absolute positions to learn."""
    return plain_vit - (1 + patches) * width


def text_encoder(width: int, depth: int) -> int:
    """RoBERTa's, without types of tokens and without pooler."""
    return (50_265 + 514) * width + 2 * width + depth * block(width)


ENCODERS = [
    audio_encoder(768, 12, 12),
    audio_encoder(1024, 16, 8 + 16),
    image_encoder(85_798_656, 768, 14 * 14),
    image_encoder(303_301_632, 1024, 14 * 14),
    image_encoder(630_764_800, 1280, 16 * 16),
    text_encoder(768, 12),
    text_encoder(1024, 24),
]
DECODERS = [
    convs([768, *[384] * 4], 7, 16) + linears(384, 768),
    convs([1024, *[768] * 4], 7, 16) + linears(768, 1024),
    convs([768] * 7, 3**2, 16) + linears(768, 768),
    convs([1024] * 4, 5**2, 16) + linears(1024, 1024),
    convs([1280, *[1024] * 3], 5**2, 16) + linears(1024, 1280),
    convs([768] * 6, 9, 1) + linears(768, 2 * 768, 768),
    convs([1024, *[768] * 5], 9, 1) + linears(768, 2 * 768, 1024),
]


@pytest.mark.parametrize(
    ("file", "encoder", "decoder"), list(zip(FAITHFUL, ENCODERS, DECODERS, strict=True))
)
def test_sizes(file: str, encoder: int, decoder: int) -> None:
    config, model = build(file)
    assert all(parameter.is_meta for parameter in model.parameters())
    parameters = dict(model.named_parameters())
    for part, size in ((of_student, encoder), (of_predictor, decoder)):
        assert sum(p.numel() for p in part(parameters, config.modality).values()) == size


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(corpus(), 200, folder)
    return folder / "tokenizer.json"


def example(config: RunConfig) -> np.ndarray:
    """The largest that the config takes."""
    if config.modality == "audio":
        return np.zeros(int(config.input.max_seconds * config.input.sampling_rate), np.float32)
    if config.modality == "image":
        return np.zeros((3, *config.input.size), np.float32)
    return np.full(config.input.max_tokens, 7)


@pytest.mark.parametrize(
    ("file", "tokens", "visible"),
    [
        (AUDIO_BASE, 999, 999 - 499),
        (AUDIO_LARGE, 999, 999 - 549),
        (IMAGE_BASE, 196, 39),
        (IMAGE_LARGE, 196, 49),
        (IMAGE_HUGE, 256, 64),
        (TEXT_BASE, 512, 266),
        (TEXT_LARGE, 512, 256),
        ("configs/audio/base_visible.yaml", 999, 999 - 499),
        ("configs/image/base_visible.yaml", 196, 39),
        ("configs/text/base_visible.yaml", 512, 266),
    ],
)
def test_what_the_student_sees(file: str, tokens: int, visible: int, tokenizer: Path) -> None:
    overrides = [f"input.tokenizer={tokenizer}"] if "text" in file else []
    config = load(file, *overrides)
    pipeline = load_modality(config.modality).build_pipeline(config)
    batch = pipeline.collate([example(config)] * 2, row_keys(0, np.arange(2)))
    assert batch.masks is not None
    masked = batch.masks.masked
    assert masked.shape == (2 * config.mask.num_masks, tokens)
    assert (~masked).sum(1).tolist() == [visible] * len(masked)
    assert batch.masks.filler is None
    assert len({tuple(row.tolist()) for row in masked}) == len(masked)


@pytest.mark.parametrize(
    ("file", "key"),
    [
        *((file, "encoder.alibi") for file in (AUDIO_BASE, AUDIO_LARGE)),
        *((file, "model.norm_order") for file in (IMAGE_BASE, IMAGE_LARGE, IMAGE_HUGE)),
        # 2.0's text encoder is RoBERTa's
        *((file, "") for file in (TEXT_BASE, TEXT_LARGE, *VISIBLE)),
    ],
)
def test_what_transformers_can_hold(file: str, key: str) -> None:
    config = load(file)
    reason = why_not_exportable(load_modality(config.modality), config)
    assert bool(reason) == bool(key)
    assert key in reason


@pytest.mark.parametrize(("file", "dense"), VISIBLE.items())
def test_visible_recipe_has_the_encoder_of_the_dense_one(file: str, dense: str) -> None:
    config, model = build(file)
    _, other = build(dense)
    ours, theirs = (of_student(dict(m.named_parameters()), config.modality) for m in (model, other))
    theirs.pop("encoder.mask_token", None)
    assert {n: p.shape for n, p in ours.items()} == {n: p.shape for n, p in theirs.items()}
    for key in ("heads", "norm_order", "norm_eps", "layer_scale", "initializer"):
        assert getattr(config.model, key) == getattr(load(dense).model, key)


@pytest.mark.parametrize(
    ("file", "differs"),
    [
        ("configs/audio/base_visible.yaml", {"encoder.alibi": False}),
        (
            "configs/image/base_visible.yaml",
            {
                "encoder.positions": "relative",
                "encoder.context_norm": False,
                "encoder.prenet_depth": 0,
                "model.depth": 12,
                "model.norm_order": "pre",
                "model.key_bias": False,
                "model.layer_scale": 1e-4,
                "model.initializer": "beit",
                "objective.target_from": "block",
            },
        ),
        ("configs/text/base_visible.yaml", {}),
    ],
)
def test_visible_recipe_has_the_rest_of_2(file: str, differs: dict[str, Any]) -> None:
    ours = values(file)
    theirs = values(file.replace("base_visible", "data2vec2_base"))
    assert ours.pop("run_dir") != theirs.pop("run_dir")
    assert {key: value for key, value in ours.items() if value != theirs[key]} == differs
