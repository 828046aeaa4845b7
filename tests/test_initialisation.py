"""Sizes and initial weights of the base models against the originals'.

Figures of data2vec 1.0's audio and text base models and of 2.0's three as facebookresearch/fairseq
(commit 3d262bb25690e4eb2e7d3c1309b1e9c406ca4b99) builds them, recorded from one draw; text with a
vocabulary of 1,000.
"""

import math
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from selfdistill.config import RunConfig
from selfdistill.config_files.load import load_config
from selfdistill.modalities.base import load_modality
from selfdistill.objective.data2vec import Data2Vec
from selfdistill.objective.state import of_teacher
from selfdistill.originals import trained_part
from selfdistill.renaming import to_theirs

AUDIO_1, TEXT_1 = "audio/base_librispeech.yaml", "text/base.yaml"
AUDIO_2, IMAGE_2, TEXT_2 = (f"{m}/data2vec2_base.yaml" for m in ("audio", "image", "text"))
IMAGE_1 = "image/base_imagenet.yaml"
SMALL_VOCABULARY = "encoder.vocab_size=1000"


class Figure(NamedTuple):
    mean: float
    deviation: float
    uniform: bool = False


ONES, ZEROS, BERT = Figure(1.0, 0.0), Figure(0.0, 0.0), Figure(0.0, 0.02)


def normal(deviation: float) -> Figure:
    return Figure(0.0, deviation)


def uniform(deviation: float, mean: float = 0.0) -> Figure:
    return Figure(mean, deviation, True)


# by name pattern; the first one that fits counts
FEATURES = {
    "*conv_layers.?.2.1.weight": ONES,
    "*conv_layers.?.2.1.bias": ZEROS,
    "*conv_layers.0.0.weight": normal(0.449605),
    "*conv_layers.[1-4].0.weight": normal(0.036070),
    "*conv_layers.[56].0.weight": normal(0.044187),
}
LAYERS_1 = {
    "*layers.?.*norm.weight": ONES,
    "*layers.?.*.bias": ZEROS,
    "*layers.?.*.weight": BERT,
}
BLOCKS_2 = {"*blocks.?.norm?.weight": ONES, "*blocks.?.*.bias": ZEROS, "*blocks.?.*.weight": BERT}
FIGURES = {
    AUDIO_1: FEATURES
    | LAYERS_1
    | {
        "mask_emb": uniform(0.286644, mean=0.5067),
        "*layer_norm.weight": ONES,
        "*layer_norm.bias": ZEROS,
        "post_extract_proj.weight": uniform(0.025503),
        "post_extract_proj.bias": uniform(0.026091),
        "encoder.pos_conv.?.0.weight": uniform(0.019120),
        "encoder.pos_conv.?.0.bias": uniform(0.019143),
        "final_proj.weight": uniform(0.020818),
        "final_proj.bias": uniform(0.020699),
    },
    TEXT_1: LAYERS_1
    | {
        "*embed_tokens.weight": normal(0.020002),
        "*embed_positions.weight": normal(0.019962),
        "*layernorm_embedding.weight": ONES,
        "*regression_head.?.weight": normal(0.020003),
        "*.bias": ZEROS,
    },
    AUDIO_2: {
        "*AUDIO.alibi_scale": ONES,
        "*AUDIO.decoder.blocks.0.0.weight": uniform(0.031466),
        "*AUDIO.decoder.blocks.0.0.bias": uniform(0.031604),
        "*AUDIO.decoder.blocks.[1-3].0.weight": uniform(0.044709),
        "*AUDIO.decoder.blocks.[1-3].0.bias": uniform(0.046045),
        "*AUDIO.decoder.proj.weight": uniform(0.029468),
        "*AUDIO.decoder.proj.bias": uniform(0.029894),
        "*AUDIO.project_features.1.weight": ONES,
        "*AUDIO.project_features.1.bias": ZEROS,
        "*AUDIO.project_features.2.weight": uniform(0.025475),
        "*AUDIO.project_features.2.bias": uniform(0.025955),
        "*AUDIO.relative_positional_encoder.?.0.weight": uniform(0.019120),
        "*AUDIO.relative_positional_encoder.?.0.bias": uniform(0.019411),
        "*AUDIO.context_encoder.norm.weight": ONES,
        "*AUDIO.context_encoder.norm.bias": ZEROS,
    }
    | FEATURES
    | BLOCKS_2,
    IMAGE_2: {
        "*IMAGE.extra_tokens": normal(0.972342),
        "*IMAGE.local_encoder.proj.weight": uniform(0.036091),
        "*IMAGE.local_encoder.proj.bias": uniform(0.020986),
        "*IMAGE.context_encoder.norm.weight": ONES,
        "*IMAGE.context_encoder.norm.bias": ZEROS,
        "*IMAGE.decoder.blocks.?.0.weight": uniform(0.027785),
        "*IMAGE.decoder.blocks.?.0.bias": uniform(0.027426),
        "*IMAGE.decoder.proj.weight": uniform(0.020828),
        "*IMAGE.decoder.proj.bias": uniform(0.021123),
    }
    | BLOCKS_2,
    TEXT_2: {
        "*TEXT.local_encoder.embed_tokens.weight": normal(0.019977),
        "*TEXT.local_encoder.embed_positions.weight": normal(0.019987),
        "*TEXT.local_encoder.layernorm_embedding.weight": ONES,
        "*TEXT.local_encoder.layernorm_embedding.bias": ZEROS,
        "*TEXT.decoder.blocks.?.0.weight": uniform(0.006944),
        "*TEXT.decoder.blocks.?.0.bias": uniform(0.006963),
        "*TEXT.decoder.proj.?.weight": normal(0.020010),
        "*TEXT.decoder.proj.?.bias": ZEROS,
    }
    | BLOCKS_2,
}
SHAPES = {
    AUDIO_2: {
        "alibi_scale": (1, 1, 12, 1, 1),
        "decoder.blocks.0.0.weight": (384, 48, 7),
        "decoder.blocks.3.0.weight": (384, 24, 7),
        "decoder.proj.weight": (768, 384),
        "project_features.2.weight": (768, 512),
        "relative_positional_encoder.5.0.weight": (768, 48, 19),
    },
    IMAGE_2: {
        "context_encoder.blocks.1.attn.qkv.bias": (2304,),
        "decoder.blocks.5.0.weight": (768, 48, 3, 3),
        "extra_tokens": (1, 1, 768),
        "local_encoder.proj.weight": (768, 3, 16, 16),
    },
    TEXT_2: {
        "decoder.blocks.4.0.weight": (768, 768, 9),
        "decoder.proj.0.weight": (1536, 768),
        "decoder.proj.2.weight": (768, 1536),
        "local_encoder.embed_positions.weight": (514, 768),
    },
}


def load(file: str, *overrides: str) -> RunConfig:
    if file in (TEXT_1, TEXT_2):
        overrides = (SMALL_VOCABULARY, *overrides)
    configs = Path(__file__).resolve().parents[1] / "configs"
    return load_config(configs / file, overrides, load_modality)


def trained(model: Data2Vec, config: RunConfig) -> dict[str, torch.Tensor]:
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    return trained_part(parameters, config.modality)


def by_their_names(tensors: dict[str, torch.Tensor], file: str) -> dict[str, torch.Tensor]:
    version_1, version_2 = load_modality(Path(file).parent.name).originals
    return to_theirs(tensors, (version_2 if "data2vec2" in file else version_1).names)


@pytest.mark.parametrize(
    ("file", "student", "teacher"),
    [
        # the recorded teacher has no mask vector (768) ...
        (AUDIO_1, 93_754_880, 88_561_920 + 768),
        # ... nor is its counter a parameter
        (TEXT_1, 88_580_352, 86_218_753 - 1),
        (AUDIO_2, 93_783_308, 88_561_932),
        # fixed positions (150,528) are no parameters here
        (IMAGE_2, 88_383_744 - 196 * 768, 85_797_888 - 196 * 768),
        (TEXT_2, 115_126_272, 85_054_464),
    ],
)
def test_parameters_of_the_base_models(file: str, student: int, teacher: int) -> None:
    config = load(file)
    with torch.device("meta"):
        model = Data2Vec(config)
    assert sum(p.numel() for p in trained(model, config).values()) == student
    assert sum(p.numel() for p in model.teacher.parameters()) == teacher


@pytest.mark.parametrize(
    ("file", "student", "teacher", "averaged"),
    [
        (AUDIO_2, 192, 157, ("blocks.", "*.alibi_scale", "*.context_", "*.relative_")),
        (IMAGE_2, 164 - 1, 150 - 1, ("blocks.", "*.extra_", "*.context_", "*.local_")),
        (TEXT_2, 162, 144, ("blocks.",)),
    ],
)
def test_names_and_shapes_of_the_base_models(
    file: str, student: int, teacher: int, averaged: tuple[str, ...]
) -> None:
    """Of 2.0, by the originals' names; the recorded counts have the fixed positions of images."""
    config = load(file)
    with torch.device("meta"):
        model = Data2Vec(config)
    theirs = by_their_names(trained(model, config), file)
    prefix = f"modality_encoders.{config.modality.upper()}."
    shapes = {name: tuple(theirs[prefix + name].shape) for name in SHAPES[file]}
    assert shapes == SHAPES[file]
    assert len(theirs) == student
    parameters = of_teacher(dict(model.named_parameters()), config.modality)
    expected = {n for n in theirs if any(fnmatch(n, f"{part}*") for part in averaged)}
    assert set(by_their_names(parameters, file)) == expected
    assert len(expected) == teacher


def noise(parameter: torch.Tensor) -> float:
    """Five deviations of the difference between two draws' standard deviations, as a share."""
    return 5 / math.sqrt(parameter.numel())


@pytest.mark.parametrize("file", FIGURES)
def test_initial_weights_are_the_originals(file: str) -> None:
    config = load(file, "model.depth=1", "objective.average_top_k_layers=1")
    torch.manual_seed(0)
    state = by_their_names(trained(Data2Vec(config), config), file)
    figures = FIGURES[file]
    used: set[str] = set()
    for name, tensor in state.items():
        pattern = next(pattern for pattern in figures if fnmatch(name, pattern))
        mean, deviation, is_uniform = figures[pattern]
        used.add(pattern)
        found = tensor.std(correction=0).item()
        assert found == pytest.approx(deviation, rel=noise(tensor), abs=1e-9), name
        assert tensor.mean().item() == pytest.approx(mean, abs=deviation * noise(tensor) + 1e-9)
        if deviation:  # a uniform distribution ends at 1.73 deviations
            furthest = (tensor - mean).abs().max() / found
            assert (furthest < 1.95) == is_uniform, name
    assert used == set(figures)


def test_padding_s_rows_are_zero() -> None:
    config = load(TEXT_1, "model.depth=1", "objective.average_top_k_layers=1")
    encoder = Data2Vec(config).student["text"].encoder
    for table in ("local", "positions"):
        weight = encoder.get_parameter(f"{table}.weight")
        assert not weight[1].any()
        assert weight[[0, 2]].all()


def test_initial_weights_of_images() -> None:
    """BEiT's: normal(0.02) cut at one deviation, of which 0.53956 is left."""
    config = load(IMAGE_1, "model.depth=2", "objective.average_top_k_layers=1")
    torch.manual_seed(0)
    state = trained(Data2Vec(config), config)
    cut = 0.02 * 0.53956
    for block in range(2):
        start = f"trunk.blocks.{block}."
        rescaled = cut / math.sqrt(2 * (block + 1))
        for name, deviation in {
            "attention.qkv.weight": cut,
            "attention.proj.weight": rescaled,
            "mlp.fc1.weight": cut,
            "mlp.fc2.weight": rescaled,
        }.items():
            tensor = state.pop(start + name)
            assert tensor.std().item() == pytest.approx(deviation, rel=noise(tensor)), name
            assert tensor.abs().max() <= 0.02
        for name in ("gain1.gamma", "gain2.gamma"):
            assert (state.pop(start + name) == 1e-4).all()
    for name in ("encoder.local.proj.weight", "encoder.class_token", "encoder.mask_token"):
        tensor = state.pop(name)
        assert tensor.std().item() == pytest.approx(cut, rel=noise(tensor))
    head = state.pop("head.0.weight")
    assert head.std().item() == pytest.approx(cut, rel=noise(head))
    for name, tensor in state.items():
        value = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        assert (tensor == value).all(), name
