"""The tables and fields of transformers' format: every parameter of ours once, and back again."""

from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import Data2VecVisionConfig, Data2VecVisionForSemanticSegmentation

from selfdistill.config import RunConfig
from selfdistill.config_files.load import load_config
from selfdistill.errors import UserError
from selfdistill.hub.writer import config_json, hub_tensors, why_not_exportable
from selfdistill.modalities.backbone import Backbone, build_backbone
from selfdistill.modalities.base import HubFormat, load_modality
from selfdistill.modalities.image.hub import POSITIONS, segmentation_layers
from selfdistill.renaming import to_ours, to_theirs

ROOT = Path(__file__).parents[2]
Make = Callable[..., RunConfig]


CHANGES = {
    "audio": {"encoder": {"conv_bias": True}},
    "image": {"input": {"size": [32, 32]}},
    "image, a bias per block": {
        "input": {"size": [32, 32]},
        "encoder": {"positions": "block_relative"},
    },
    "image, a vector per patch": {"input": {"size": [32, 32]}, "encoder": {"positions": "learned"}},
    "text": {},
}


@pytest.fixture(params=CHANGES)
def config(request: pytest.FixtureRequest, tiny_config: Make) -> RunConfig:
    modality = request.param.split(",")[0]
    return tiny_config(modality, model={"depth": 11}, **CHANGES[request.param])


def build(config: RunConfig) -> Backbone:
    return build_backbone(config)


def format_of(config: RunConfig) -> HubFormat:
    hub = load_modality(config.modality).hub
    assert hub is not None
    return hub


def kept(hub: HubFormat, backbone: Backbone) -> dict[str, Tensor]:
    return {
        name: parameter.detach()
        for name, parameter in backbone.named_parameters()
        if not any(fnmatch(name, pattern) for pattern in hub.dropped)
    }


def test_the_table_is_a_bijection(config: RunConfig) -> None:
    hub, ours = format_of(config), dict(build(config).named_parameters())
    theirs = to_theirs(ours, hub.names)
    assert sum(t.numel() for t in theirs.values()) == sum(t.numel() for t in ours.values())
    back, unknown = to_ours(theirs, hub.names)
    assert unknown == []
    assert back.keys() == ours.keys()
    assert all(torch.equal(back[name], value) for name, value in ours.items())


@pytest.mark.parametrize("modality", ["audio", "image", "text"])
def test_no_row_of_the_table_is_idle_or_double(modality: str, tiny_config: Make) -> None:
    kinds = [changes for name, changes in CHANGES.items() if name.split(",")[0] == modality]
    configs = [tiny_config(modality, **changes) for changes in kinds]
    names = format_of(configs[0]).names
    ours = {n: p for config in configs for n, p in build(config).named_parameters()}
    for table in (names[:i] + names[i + 1 :] for i in range(len(names))):
        with pytest.raises(KeyError):
            to_theirs(ours, table)


def test_what_is_dropped_is_there(config: RunConfig) -> None:
    hub, backbone = format_of(config), build(config)
    names = [name for name, _ in backbone.named_parameters()]
    for pattern, reason in hub.dropped.items():
        assert any(fnmatch(name, pattern) for name in names)
        assert reason
    assert bool(hub.dropped) == (config.modality == "image")


def test_exported_tensors_own_their_memory(config: RunConfig) -> None:
    hub, backbone = format_of(config), build(config).half()
    tensors = hub_tensors(hub, config, dict(backbone.named_parameters()))
    assert all(t.is_contiguous() and t.dtype == torch.float32 for t in tensors.values())
    assert len({t.data_ptr() for t in tensors.values()}) == len(tensors)
    assert not any(t.requires_grad for t in tensors.values())
    expected = len(to_theirs(kept(hub, backbone), hub.names)) + len(hub.constants(config))
    assert len(tensors) == expected


def test_no_buffer_is_left_behind(config: RunConfig) -> None:
    """All buffers are made from the config; a new one needs a place in the table. ``mean`` and
    ``std`` of images go into the processor."""
    buffers = {name.rpartition(".")[2] for name, _ in build(config).named_buffers()}
    assert buffers <= {"relative_position_index", "mean", "std"}


AUDIO = {
    "model_type": "data2vec-audio",
    "architectures": ["Data2VecAudioModel"],
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "feat_extract_activation": "gelu",
    "layer_norm_eps": 1e-5,
    "conv_dim": [512] * 7,
    "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
    "conv_stride": [5, 2, 2, 2, 2, 2, 2],
    "conv_bias": False,
    "num_feat_extract_layers": 7,
    "num_conv_pos_embeddings": 5,
    "num_conv_pos_embedding_groups": 16,
    "conv_pos_kernel_size": 19,
    "hidden_dropout": 0.1,
    "activation_dropout": 0.0,
    "attention_dropout": 0.1,
    "feat_proj_dropout": 0.0,
    "layerdrop": 0.05,
    "mask_time_prob": 0.05,
    "mask_time_length": 10,
    "vocab_size": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "float32",
}
IMAGE = {
    "model_type": "data2vec-vision",
    "architectures": ["Data2VecVisionModel"],
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "image_size": 224,
    "patch_size": 16,
    "num_channels": 3,
    "use_mask_token": True,
    "use_absolute_position_embeddings": False,
    "use_relative_position_bias": False,
    "use_shared_relative_position_bias": True,
    "use_mean_pooling": True,
    "layer_scale_init_value": 1e-4,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.05,
    "drop_path_rate": 0.25,
    "out_indices": [3, 5, 7, 11],
}
TEXT = {
    "model_type": "data2vec-text",
    "architectures": ["Data2VecTextModel"],
    "vocab_size": 50_265,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
LARGE = IMAGE | {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "layer_scale_init_value": 1e-5,
    "attention_probs_dropout_prob": 0.15,
    "drop_path_rate": 0.2,
    "out_indices": [7, 11, 15, 23],
}


@pytest.mark.parametrize(
    ("recipe", "published"),
    [
        ("audio/base_librispeech", AUDIO),
        ("audio/base_audioset", AUDIO),
        ("image/base_imagenet", IMAGE),
        ("image/large_imagenet", LARGE),
        ("text/base", TEXT),
    ],
)
def test_recipes_have_the_published_fields(recipe: str, published: dict[str, object]) -> None:
    config = load_config(ROOT / "configs" / f"{recipe}.yaml", [], load_modality)
    fields = config_json(format_of(config), config)
    assert {key: fields[key] for key in published} == published


@pytest.mark.parametrize("depth", [3, 4, 5, 6, 7, 10, 12, 24, 32])
def test_segmentation_reads_four_layers_within_the_depth(depth: int) -> None:
    layers = segmentation_layers(depth)
    assert len(set(layers)) == 4
    assert layers == sorted(layers)
    assert layers[0] >= 1
    assert layers[-1] <= depth + 1  # hidden states count the blocks' input as the first


def test_segmentation_refuses_one_block(tiny_config: Make) -> None:
    """By a field, not in the middle of a step; the card says so, too."""
    for depth in (1, 2):
        config = tiny_config(
            "image",
            input={"size": [32, 32]},
            model={"depth": depth},
            objective={"average_top_k_layers": 1},
        )
        theirs = Data2VecVisionConfig(**config_json(format_of(config), config))
        pixels = torch.zeros(1, 3, theirs.image_size, theirs.image_size)
        said = "ForSemanticSegmentation cannot be made" in format_of(config).caution(config)
        assert said == (depth == 1)
        if said:
            with pytest.raises(ValueError, match="out_indices to be a list of 4"):
                Data2VecVisionForSemanticSegmentation(theirs)
        else:
            Data2VecVisionForSemanticSegmentation(theirs).eval()(pixels)


@pytest.mark.parametrize(
    ("modality", "changes", "words"),
    [
        (
            "audio",
            {"model": {"norm_order": "pre"}},
            r"Data2VecAudioModel cannot hold model\.norm_order=pre; "
            r"pretrain with model\.norm_order=post to export",
        ),
        ("audio", {"model": {"layer_scale": 0.1}}, r"model\.layer_scale=0\.1.*=0\.0 to export"),
        ("audio", {"model": {"norm_eps": 1e-6}}, r"model\.norm_eps=1e-06.*=1e-05 to export"),
        ("text", {"model": {"key_bias": False}}, r"model\.key_bias=False.*=True to export"),
        ("text", {"model": {"norm_order": "pre"}}, r"Data2VecTextModel.*model\.norm_order=pre"),
        ("image", {"model": {"norm_order": "post"}}, r"model\.norm_order=post.*=pre to export"),
        ("image", {"model": {"key_bias": True}}, r"model\.key_bias=True.*=False to export"),
        ("image", {"input": {"size": [24, 32]}}, r"input\.size=\[24, 32\].*square images"),
        ("audio", {"encoder": {"alibi": True}}, r"encoder\.alibi=True.*=False to export"),
        ("audio", {"encoder": {"prenet_depth": 2}}, r"encoder\.prenet_depth=2.*=0 to export"),
        ("text", {"encoder": {"prenet_depth": 2}}, r"encoder\.prenet_depth=2.*=0 to export"),
        ("text", {"encoder": {"context_norm": True}}, r"encoder\.context_norm=True.*=False to exp"),
        ("image", {"encoder": {"prenet_depth": 2}}, r"encoder\.prenet_depth=2.*=0 to export"),
        ("image", {"encoder": {"context_norm": True}}, r"encoder\.context_norm=True.*=False to ex"),
        ("image", {"encoder": {"num_extra_tokens": 0}}, r"num_extra_tokens=0.*=1 to export"),
        (
            "image",
            {"encoder": {"num_extra_tokens": 2, "positions": "learned"}},
            r"encoder\.num_extra_tokens=2.*=1 to export",
        ),
    ],
)
def test_what_no_class_can_hold_is_refused(
    modality: str, changes: dict[str, object], words: str, tiny_config: Make
) -> None:
    config = tiny_config(modality, **changes)
    with pytest.raises(UserError, match=words):
        config_json(format_of(config), config)
    assert why_not_exportable(load_modality(modality), config)


def test_what_a_class_can_hold_is_not(config: RunConfig) -> None:
    assert why_not_exportable(load_modality(config.modality), config) == ""


SQUARE = {"input": {"size": [32, 32]}}
FLAGS = {
    "relative": "use_shared_relative_position_bias",
    "block_relative": "use_relative_position_bias",
    "learned": "use_absolute_position_embeddings",
    "sincos": "use_absolute_position_embeddings",
}


@pytest.mark.parametrize("kind", FLAGS)
def test_positions_have_one_field(kind: str, tiny_config: Make) -> None:
    config = tiny_config("image", encoder={"positions": kind}, **SQUARE)
    fields = config_json(format_of(config), config)
    assert {field for field in set(FLAGS.values()) if fields[field]} == {FLAGS[kind]}


@pytest.mark.parametrize("kind", ["learned", "sincos"])
def test_the_class_token_s_position_is_a_part_of_it(kind: str, tiny_config: Make) -> None:
    config = tiny_config("image", encoder={"positions": kind}, **SQUARE)
    hub, backbone = format_of(config), build(config)
    ours = dict(backbone.named_parameters())
    theirs = hub_tensors(hub, config, ours)
    assert theirs[POSITIONS].shape == (1, 17, 16)
    assert not theirs[POSITIONS][0, 0].any()
    assert torch.equal(theirs[POSITIONS][:, 1:], backbone.encoder.positions)
    moved = theirs | {POSITIONS: theirs[POSITIONS] + 3}
    back, unknown = to_ours(hub.fold(moved), hub.names)
    assert unknown == []
    assert torch.equal(back["encoder.positions"], backbone.encoder.positions + 3)
    assert torch.equal(back["encoder.class_token"], ours["encoder.class_token"] + 3)
    assert torch.equal(moved[POSITIONS][:, 1:], back["encoder.positions"])  # and is left as it was


@pytest.mark.parametrize(
    ("modality", "name", "shape"),
    [
        ("audio", "masked_spec_embed", (16,)),
        ("image", "embeddings.mask_token", (1, 1, 16)),
        ("text", None, None),
    ],
)
def test_runs_without_a_mask_vector_have_zeros_for_it(
    modality: str, name: str | None, shape: tuple[int, ...] | None, tiny_config: Make
) -> None:
    changes = SQUARE if modality == "image" else {}
    found = {}
    for strategy in ("dense", "visible"):
        config = tiny_config(modality, strategy=strategy, **changes)
        backbone = dict(build(config).named_parameters())
        found[strategy] = hub_tensors(format_of(config), config, backbone)
    assert found["visible"].keys() == found["dense"].keys()
    if name is not None:
        assert found["visible"][name].shape == found["dense"][name].shape == shape
        assert not found["visible"][name].any()
        assert found["dense"][name].any()
