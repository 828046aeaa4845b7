"""data2vec 1.0's recipes under configs/: published values and sizes."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from recipe_files import FILES, ROOT, load, values
from timm.models.beit import Beit
from torch import nn

from selfdistill.data.locations import resolve
from selfdistill.errors import UserError
from selfdistill.objective.data2vec import Data2Vec

LIBRISPEECH = "configs/audio/base_librispeech.yaml"
AUDIOSET = "configs/audio/base_audioset.yaml"
IMAGE_BASE = "configs/image/base_imagenet.yaml"
IMAGE_LARGE = "configs/image/large_imagenet.yaml"
TEXT = "configs/text/base.yaml"
RECIPES = [LIBRISPEECH, AUDIOSET, IMAGE_BASE, IMAGE_LARGE, TEXT]

BASE = {"model.width": 768, "model.depth": 12, "model.heads": 12, "model.mlp_ratio": 4.0}
FAIRSEQ = {
    "model.norm_order": "post",
    "model.norm_eps": 1e-5,
    "model.key_bias": True,
    "model.layer_scale": 0.0,
    "model.initializer": "bert",
    "model.dropout": 0.1,
    "model.attention_dropout": 0.1,
    "model.activation_dropout": 0.0,
    "model.drop_path": 0.0,
    "objective.target_from": "ffn",
    "teacher.ema_decay": 0.999,
    "teacher.ema_end_decay": 0.9999,
    "optim.betas": (0.9, 0.98),
    "optim.eps": 1e-6,
    "optim.weight_decay": 0.01,
    "optim.min_lr": 0.0,
}
AUDIO = {
    "encoder.conv_layers": [[512, 10, 5], *[[512, 3, 2]] * 4, *[[512, 2, 2]] * 2],
    "encoder.conv_bias": False,
    "encoder.position_width": 95,
    "encoder.position_depth": 5,
    "encoder.position_groups": 16,
    "encoder.input_dropout": 0.0,
    "mask.mask_prob": 0.65,
    "mask.mask_length": 10,
    "mask.equal_counts": False,
    "input.sampling_rate": 16_000,
    "input.min_seconds": 32_000 / 16_000,
    "input.max_seconds": 320_000 / 16_000,
    "input.normalize": True,
    "model.layer_drop": 0.05,
    "objective.layer_norms": ["instance"],
    "objective.loss_beta": 0.0,
    "objective.loss_scale": "rsqrt_width",
    "objective.head_layers": 1,
    "objective.head_initializer": "default",
    "teacher.ema_anneal_end_step": 30_000,
    "teacher.scope": "all_but_local",
    "optim.lr": 5e-4,
    "optim.clip_norm": 0.0,
}
IMAGE = {
    "encoder.patch_size": 16,
    "mask.num_patches": 120,
    "mask.min_block": 16,
    "mask.max_block": 196,
    "mask.min_aspect": 0.3,
    "input.size": [224, 224],
    "input.crop_scale": (0.08, 1.0),
    "input.crop_ratio": (3 / 4, 4 / 3),
    "input.flip": 0.5,
    "input.color_jitter": 0.4,
    "input.mean": (0.485, 0.456, 0.406),
    "input.std": (0.229, 0.224, 0.225),
    "model.mlp_ratio": 4.0,
    "model.norm_order": "pre",
    "model.norm_eps": 1e-6,
    "model.key_bias": False,
    "model.initializer": "beit",
    "model.dropout": 0.0,
    "model.activation_dropout": 0.0,
    "model.layer_drop": 0.0,
    "objective.average_top_k_layers": 6,
    "objective.target_from": "block",
    "objective.layer_norms": ["layer"],
    "objective.target_norms": ["layer"],
    "objective.loss_beta": 2.0,
    "objective.loss_scale": "mean",
    "objective.head_layers": 1,
    "objective.head_initializer": "beit",
    "teacher.ema_decay": 0.9998,
    "teacher.ema_end_decay": 0.9998,
    "teacher.ema_anneal_end_step": 0,
    "teacher.scope": "all",
    "teacher.copied": [],
    "optim.betas": (0.9, 0.999),
    "optim.eps": 1e-8,
    "optim.weight_decay": 0.05,
    "optim.schedule": "cosine",
    "optim.min_lr": 1e-5,
    "optim.clip_norm": 3.0,
}
IMAGES = 1_281_167  # of ImageNet-1k's training set
PUBLISHED: dict[str, dict[str, Any]] = {
    LIBRISPEECH: BASE
    | FAIRSEQ
    | AUDIO
    | {
        "objective.average_top_k_layers": 8,
        "objective.target_norms": [],
        "teacher.copied": ["encoder.positions"],
        "optim.schedule": "tri_stage",
        "optim.phase_ratio": (0.03, 0.9, 0.07),
        "optim.warmup_steps": 0,
        "train.steps": 400_000,
    },
    AUDIOSET: BASE
    | FAIRSEQ
    | AUDIO
    | {
        "objective.average_top_k_layers": 12,
        "objective.target_norms": ["layer"],
        "teacher.copied": [],
        "optim.schedule": "cosine",
        "optim.warmup_steps": 10_000,
        "train.steps": 200_000,
    },
    IMAGE_BASE: BASE
    | IMAGE
    | {
        "model.layer_scale": 1e-4,
        "model.attention_dropout": 0.05,
        "model.drop_path": 0.25,
        "optim.lr": 2e-3,
        "optim.warmup_steps": 10 * math.ceil(IMAGES / (16 * 128)),
        "train.steps": 800 * math.ceil(IMAGES / (16 * 128)),
        "train.batch_size": 16 * 128,
    },
    IMAGE_LARGE: IMAGE
    | {
        "model.width": 1024,
        "model.depth": 24,
        "model.heads": 16,
        "model.layer_scale": 1e-5,
        "model.attention_dropout": 0.15,
        "model.drop_path": 0.2,
        "optim.lr": 1e-3,
        "optim.warmup_steps": 80 * math.ceil(IMAGES / (64 * 64)),
        "train.steps": 800 * math.ceil(IMAGES / (64 * 64)),
        "train.batch_size": 64 * 64,
    },
    TEXT: BASE
    | FAIRSEQ
    | {
        "encoder.vocab_size": 50_265,
        "encoder.mask_id": 4,
        "mask.mask_prob": 0.35,
        "mask.mask_length": 4,
        "input.max_tokens": 512,
        "model.layer_drop": 0.0,
        "objective.average_top_k_layers": 10,
        "objective.layer_norms": ["layer"],
        "objective.target_norms": [],
        "objective.loss_beta": 4.0,
        "objective.loss_scale": 1.0,
        "objective.head_layers": 2,
        "objective.head_initializer": "bert",
        "teacher.ema_anneal_end_step": 300_000,
        "teacher.scope": "all",
        "teacher.copied": ["encoder.local", "encoder.positions", "encoder.norm"],
        "optim.lr": 2e-4,
        "optim.schedule": "cosine",
        "optim.warmup_steps": 10_000,
        "optim.clip_norm": 5.0,
        "train.steps": 1_000_000,
        "train.batch_size": 16 * 8_192 // 512,
    },
}


def build(file: str) -> Data2Vec:
    with torch.device("meta"):
        return Data2Vec(load(file))


def parameters(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def test_every_recipe_is_there() -> None:
    assert set(RECIPES) <= set(FILES)


@pytest.mark.parametrize("file", RECIPES)
def test_recipe_opens_with_its_commands(file: str) -> None:
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("# data2vec 1.0, ")
    name = file.removeprefix("configs/").removesuffix(".yaml")
    assert f"#   accelerate launch -m selfdistill pretrain {name}" in lines


@pytest.mark.parametrize("file", RECIPES)
def test_recipe_names_data_that_the_user_has_to_bring(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load(file)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"data\.train: no file matches 'data/\w+/train-\*\.tar'"):
        resolve(config.data.train)


@pytest.mark.parametrize("file", RECIPES)
def test_recipe_has_the_published_values(file: str) -> None:
    ours = values(file)
    assert {key: ours[key] for key in PUBLISHED[file]} == PUBLISHED[file]


@pytest.mark.parametrize(
    ("file", "processes", "samples"),
    [
        (LIBRISPEECH, 16, 3_800_000),
        ("configs/audio/data2vec2_base.yaml", 8, 1_000_000),
        ("configs/audio/base_visible.yaml", 8, 1_000_000),
        ("configs/audio/data2vec2_large.yaml", 48, 320_000),
    ],
)
def test_audio_batch_holds_the_published_amount_of_sound(
    file: str, processes: int, samples: int
) -> None:
    config = load(file)
    assert config.data.batch_length == processes * samples / config.input.sampling_rate
    assert config.data.batch_length >= processes * config.input.max_seconds


def test_audioset_batch_holds_the_published_amount_of_sound() -> None:
    config = load(AUDIOSET)
    published = 24 * 3_400_000 / (10.0 * config.input.sampling_rate)
    assert config.train.batch_size % 24 == 0
    assert published - 24 < config.train.batch_size <= published


@pytest.mark.parametrize("file", [LIBRISPEECH, AUDIOSET])
def test_size_of_audio_base(file: str) -> None:
    model = build(file)
    # counted in fairseq's own model (commit 3d262bb25690e4eb2e7d3c1309b1e9c406ca4b99)
    assert parameters(model.student, model.predictors) == 93_754_880


def test_size_of_text_base() -> None:
    model = build(TEXT)
    # fairseq's own model with a vocabulary of 1,000, and the rows that the table has more
    assert parameters(model.student, model.predictors) == 88_580_352 + (50_265 - 1_000) * 768


def beit_size(width: int, depth: int, heads: int, patch: int = 16, grid: int = 14) -> int:
    """Parameters of a BEiT encoder, by its formula."""
    patches = 3 * patch**2 * width + width
    class_and_mask_token = 2 * width
    table = ((2 * grid - 1) ** 2 + 3) * heads
    attention = 3 * width**2 + 2 * width + width**2 + width  # no bias on the keys
    mlp = 4 * width**2 + 4 * width + 4 * width**2 + width
    norms_and_gains = 2 * 2 * width + 2 * width
    closing_norm = 2 * width
    blocks = depth * (attention + mlp + norms_and_gains)
    return patches + class_and_mask_token + table + blocks + closing_norm


def plain_vit_to_beit(size: int, width: int, depth: int, heads: int) -> int:
    """From the size of a plain ViT/16 without classifier: what BEiT leaves out and adds."""
    absolute_positions, key_biases = (14 * 14 + 1) * width, depth * width
    gains, table, mask_token = depth * 2 * width, (27 * 27 + 3) * heads, width
    return size - absolute_positions - key_biases + gains + table + mask_token


@pytest.mark.parametrize(
    ("file", "width", "depth", "heads", "plain_vit", "total"),
    [
        (IMAGE_BASE, 768, 12, 12, 85_798_656, 85_666_128),
        (IMAGE_LARGE, 1024, 24, 16, 303_301_632, 303_137_216),
    ],
)
def test_size_of_image_encoders(
    file: str, width: int, depth: int, heads: int, plain_vit: int, total: int
) -> None:
    model = build(file)
    assert parameters(model.student) == total
    assert parameters(model.predictors) == width**2 + width
    assert beit_size(width, depth, heads) == total
    assert plain_vit_to_beit(plain_vit, width, depth, heads) == total
    with torch.device("meta"):
        timms = Beit(
            embed_dim=width,
            depth=depth,
            num_heads=heads,
            init_values=1e-4,
            use_abs_pos_emb=False,
            use_shared_rel_pos_bias=True,
            num_classes=0,
            global_pool="",
        )
    mask_token = width  # timm's has none
    assert parameters(timms) + mask_token == total
