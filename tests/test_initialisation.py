"""Sizes and initial weights of the base models against the originals'.

Figures of data2vec 1.0's audio and text base models as facebookresearch/fairseq (commit
3d262bb25690e4eb2e7d3c1309b1e9c406ca4b99) builds them, recorded from one draw.
"""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from selfdistill.config import RunConfig
from selfdistill.config_file import load_config
from selfdistill.modalities.base import load_modality
from selfdistill.objective.data2vec import Data2Vec
from selfdistill.renaming import to_theirs

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
AUDIO = CONFIGS / "audio" / "base_librispeech.yaml"
TEXT = CONFIGS / "text" / "base.yaml"
IMAGE = CONFIGS / "image" / "base_imagenet.yaml"

ONES, ZEROS = (1.0, 0.0), (0.0, 0.0)
# mean and deviation by name
AUDIO_FIGURES = {
    "mask_emb": (0.5067, 0.2866),
    "feature_extractor.conv_layers.1.2.1.weight": ONES,
    "post_extract_proj.weight": (0.0, 0.025503),
    "post_extract_proj.bias": (0.0, 0.026091),
    "encoder.pos_conv.0.0.weight": (0.0, 0.019120),
    "encoder.pos_conv.4.0.weight": (0.0, 0.019116),
    "encoder.pos_conv.1.0.bias": (0.0, 0.018828),
    "layer_norm.weight": ONES,
    "layer_norm.bias": ZEROS,
    "encoder.layer_norm.weight": ONES,
    "encoder.layer_norm.bias": ZEROS,
    "final_proj.weight": (0.0, 0.020818),
    "final_proj.bias": (0.0, 0.020699),
}
TEXT_FIGURES = {
    "encoder.sentence_encoder.embed_tokens.weight": (0.0, 0.020002),
    "encoder.sentence_encoder.embed_positions.weight": (0.0, 0.019962),
    "encoder.sentence_encoder.layernorm_embedding.weight": ONES,
    "encoder.sentence_encoder.layernorm_embedding.bias": ZEROS,
    "encoder.regression_head.0.weight": (0.0, 0.020003),
    "encoder.regression_head.0.bias": ZEROS,
    "encoder.regression_head.2.weight": (0.0, 0.020007),
    "encoder.regression_head.2.bias": ZEROS,
}
LAYER_FIGURES = {
    "self_attn.k_proj.weight": (0.0, 0.020036),
    "self_attn.v_proj.weight": (0.0, 0.019986),
    "self_attn.q_proj.weight": (0.0, 0.019998),
    "self_attn.out_proj.weight": (0.0, 0.019979),
    "fc1.weight": (0.0, 0.020000),
    "fc2.weight": (0.0, 0.019997),
    "self_attn.k_proj.bias": ZEROS,
    "self_attn.q_proj.bias": ZEROS,
    "self_attn.v_proj.bias": ZEROS,
    "self_attn.out_proj.bias": ZEROS,
    "fc1.bias": ZEROS,
    "fc2.bias": ZEROS,
    "self_attn_layer_norm.weight": ONES,
    "self_attn_layer_norm.bias": ZEROS,
    "final_layer_norm.weight": ONES,
    "final_layer_norm.bias": ZEROS,
}


def load(path: Path, *overrides: str) -> RunConfig:
    return load_config(path, overrides, load_modality)


def trained(model: Data2Vec) -> dict[str, torch.Tensor]:
    return {n: p.detach() for n, p in model.named_parameters() if not n.startswith("teacher.")}


@pytest.mark.parametrize(
    ("path", "overrides", "student_and_head", "teacher"),
    [
        # the recorded teacher has neither a mask vector (768) ...
        (AUDIO, [], 93_754_880, 88_561_920 + 768),
        # ... nor is its counter a parameter
        (TEXT, ["encoder.vocab_size=1000"], 88_580_352, 86_218_753 - 1),
    ],
)
def test_parameters_of_the_base_models(
    path: Path, overrides: list[str], student_and_head: int, teacher: int
) -> None:
    config = load(path, *overrides)
    with torch.device("meta"):
        model = Data2Vec(load_modality(config.modality), config)
    assert sum(p.numel() for p in trained(model).values()) == student_and_head
    assert sum(p.numel() for p in model.teacher.parameters()) == teacher


def noise(parameter: torch.Tensor) -> float:
    """Five deviations of the difference between two draws' standard deviations, as a share."""
    return 5 / math.sqrt(parameter.numel())


@pytest.mark.parametrize(
    ("path", "figures", "prefix", "overrides"),
    [
        (AUDIO, AUDIO_FIGURES, "encoder.layers.0.", []),
        (TEXT, TEXT_FIGURES, "encoder.sentence_encoder.layers.0.", ["encoder.vocab_size=1000"]),
    ],
)
def test_initial_weights_are_the_originals(
    path: Path, figures: dict[str, Any], prefix: str, overrides: list[str]
) -> None:
    config = load(path, *overrides, "model.depth=1", "objective.average_top_k_layers=1")
    modality = load_modality(config.modality)
    assert modality.original is not None
    torch.manual_seed(0)
    state = to_theirs(trained(Data2Vec(modality, config)), modality.original.names)
    figures = figures | {prefix + name: figure for name, figure in LAYER_FIGURES.items()}
    for name, (mean, deviation) in figures.items():
        tensor = state.pop(name)
        found = tensor.std(correction=0).item()
        assert found == pytest.approx(deviation, rel=noise(tensor), abs=1e-9), name
        assert tensor.mean().item() == pytest.approx(mean, abs=deviation * noise(tensor) + 1e-9)
    rest = [name for name in state if not name.startswith("feature_extractor.")]
    assert rest == [n for n in rest if "pos_conv" in n]
    for name, tensor in state.items():  # kaiming's normal, and norms
        if name.endswith(".0.weight") and name.startswith("feature_extractor."):
            expected = math.sqrt(2 / tensor[0].numel())
            assert tensor.std().item() == pytest.approx(expected, rel=noise(tensor)), name


def test_padding_s_rows_are_zero() -> None:
    overrides = ["encoder.vocab_size=100", "model.depth=1", "objective.average_top_k_layers=1"]
    config = load(TEXT, *overrides)
    encoder = Data2Vec(load_modality("text"), config).student.encoder
    for table in (encoder.local, encoder.get_submodule("positions")):
        assert not table.weight[1].any()
        assert table.weight[[0, 2]].all()


def test_initial_weights_of_images() -> None:
    """BEiT's: normal(0.02) cut at one deviation, of which 0.53956 is left."""
    config = load(IMAGE, "model.depth=2", "objective.average_top_k_layers=1")
    torch.manual_seed(0)
    state = trained(Data2Vec(load_modality("image"), config))
    cut = 0.02 * 0.53956
    for block in range(2):
        start = f"student.trunk.blocks.{block}."
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
    for name in ("local.proj.weight", "class_token", "mask_token"):
        tensor = state.pop(f"student.encoder.{name}")
        assert tensor.std().item() == pytest.approx(cut, rel=noise(tensor))
    head = state.pop("head.0.weight")
    assert head.std().item() == pytest.approx(cut, rel=noise(head))
    for name, tensor in state.items():
        value = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        assert (tensor == value).all(), name
