"""Folders of transformers as they are found in the wild, read and refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save_file
from torch import Tensor

from selfdistill.errors import BadSample, UserError
from selfdistill.export import export
from selfdistill.hub.reader import HubFolder
from selfdistill.modalities.backbone import build_backbone
from selfdistill.modalities.text.hub import POSITIONS, TOKEN_TYPES
from selfdistill.pretrained import load_pretrained

Exported = Callable[[str], Path]
WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(exported: Exported, tmp_path: Path) -> Callable[[str], Path]:
    """Modality to a copy of its exported folder."""

    def copy(modality: str = "audio") -> Path:
        return Path(shutil.copytree(exported(modality), tmp_path / modality))

    return copy


def tensors_of(path: Path) -> dict[str, Tensor]:
    """Not mapped from the file, which the tests overwrite."""
    return load((path / WEIGHTS).read_bytes())


def edit(path: Path, **fields: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def same_weights(one: Path, two: Path) -> bool:
    mine, yours = (load_pretrained(str(p)).backbone.state_dict() for p in (one, two))
    return mine.keys() == yours.keys() and all(torch.equal(mine[n], yours[n]) for n in mine)


def _as_tensorflow_had_it(name: str) -> str:
    weight, bias = "LayerNorm.weight", "LayerNorm.bias"
    return name.replace(weight, "LayerNorm.gamma").replace(bias, "LayerNorm.beta")


@pytest.mark.parametrize("modality", ["audio", "image", "text"])
def test_the_fine_tuned_and_the_old_are_read(
    modality: str, exported: Exported, folder: Callable[[str], Path]
) -> None:
    """With a prefix and a head, with buffers of old versions, as a pickle, and in parts."""
    path = folder(modality)
    prefix = HubFolder(path, "MODEL").format.prefix
    tensors = {prefix + name: value for name, value in tensors_of(path).items()}
    tensors["classifier.weight"] = torch.zeros(2, 2)
    if modality == "image":
        tensors[f"{prefix}encoder.relative_position_bias.relative_position_index"] = torch.ones(1)
    if modality == "text":
        tensors[f"{prefix}embeddings.position_ids"] = torch.arange(5)
        tensors = {_as_tensorflow_had_it(name): value for name, value in tensors.items()}
    (path / WEIGHTS).unlink()
    torch.save(tensors, path / "pytorch_model.bin")
    assert same_weights(path, exported(modality))
    names = sorted(tensors)
    parts = {"a.bin": names[::2], "b.bin": names[1::2]}
    for file, members in parts.items():
        torch.save({name: tensors[name] for name in members}, path / file)
    (path / "pytorch_model.bin").unlink()
    placed = {name: file for file, members in parts.items() for name in members}
    (path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": placed}))
    assert same_weights(path, exported(modality))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(dtype: torch.dtype, folder: Callable[[str], Path]) -> None:
    """What the type of all tokens adds to their positions is added in float32."""
    path = folder("text")
    tensors = {name: tensor.to(dtype) for name, tensor in tensors_of(path).items()}
    positions, types = tensors[POSITIONS], torch.randn(1, tensors[POSITIONS].shape[1], dtype=dtype)
    save_file({**tensors, TOKEN_TYPES: types}, path / WEIGHTS)
    found = load_pretrained(str(path)).backbone.state_dict()["encoder.positions.weight"]
    assert torch.equal(found[2:], positions[2:].float() + types.float())


def test_a_head_is_named(folder: Callable[[str], Path]) -> None:
    path = folder("image")
    tensors = {f"data2vec_vision.{n}": t for n, t in tensors_of(path).items()}
    save_file({**tensors, "classifier.weight": torch.zeros(2, 2)}, path / WEIGHTS)
    found = HubFolder(path, "MODEL")
    notes = found.load_into(build_backbone(found.config()))
    assert any("classifier.weight" in note and "left out" in note for note in notes)
    assert any("trunk.norm.weight" in note and "first values" in note for note in notes)


def break_weights(path: Path) -> None:
    (path / WEIGHTS).write_bytes((path / WEIGHTS).read_bytes()[:-100])


def pickle_weights(path: Path) -> None:
    torch.save(tensors_of(path), path / WEIGHTS)


def lose_weights(path: Path) -> None:
    (path / WEIGHTS).unlink()


def lose_a_tensor(path: Path) -> None:
    tensors = tensors_of(path)
    del tensors["encoder.layers.1.attention.k_proj.weight"]
    save_file(tensors, path / WEIGHTS)


def add_a_tensor(path: Path) -> None:
    save_file({**tensors_of(path), "surprise": torch.zeros(1)}, path / WEIGHTS)


def lose_a_shard(path: Path) -> None:
    (path / WEIGHTS).rename(path / "a.safetensors")
    placed = {"weight_map": {"masked_spec_embed": "a.safetensors", "other": "b.safetensors"}}
    (path / f"{WEIGHTS}.index.json").write_text(json.dumps(placed))


def index(*names: object) -> Callable[[Path], None]:
    placed = {"weight_map": dict(enumerate(names))}

    def write(path: Path) -> None:
        (path / WEIGHTS).unlink()
        (path / f"{WEIGHTS}.index.json").write_text(json.dumps(placed))

    return write


def misplace_shards(path: Path) -> None:
    (path / WEIGHTS).rename(path.parent / WEIGHTS)
    placed = {"weight_map": {"masked_spec_embed": f"../{WEIGHTS}"}}
    (path / f"{WEIGHTS}.index.json").write_text(json.dumps(placed))


def config(**fields: object) -> Callable[[Path], None]:
    return lambda path: edit(path / "config.json", **fields)


def lose_a_field(path: Path) -> None:
    fields = json.loads((path / "config.json").read_text())
    del fields["conv_dim"]
    (path / "config.json").write_text(json.dumps(fields))


def write_nonsense(path: Path) -> None:
    (path / "config.json").write_text("{")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (
            lose_weights,
            r"audio holds no weights; expected model\.safetensors or pytorch_model\.bin",
        ),
        (break_weights, r"model\.safetensors is no safetensors file, or is cut short .*fetch it"),
        (pickle_weights, r"model\.safetensors is no safetensors file.*save the weights as safe"),
        (lose_a_tensor, r"trunk\.blocks\.1\.attention\.qkv\.weight is missing"),
        (add_a_tensor, r"surprise is not known"),
        (lose_a_shard, r"cannot read .*b\.safetensors: No such file or directory$"),
        (misplace_shards, r"index\.json names no files of its own folder"),
        (index("a.safetensors", 1), r"index\.json names no files of its own folder"),
        (index(["a.safetensors"]), r"index\.json names no files of its own folder"),
        (index("a\0b.safetensors"), r"index\.json names no files of its own folder"),
        (index(""), r"index\.json names no files of its own folder"),
        (
            config(model_type="bert"),
            r"config\.json is of model_type 'bert'; expected one of data2v",
        ),
        (config(auto_map={"AutoModel": "evil.Evil"}), r"asks to run code .*auto_map"),
        (
            config(hidden_size=64),
            r"trunk\.blocks\.0\.norm1\.weight has the shape \(32,\), not \(64,",
        ),
        (config(hidden_size="x"), r"config\.json is damaged: unsupported operand"),
        (config(hidden_act="relu"), r"hidden_act is 'relu'; only weights with 'gelu' can be read"),
        (config(layer_norm_eps=1e-6), r"layer_norm_eps is 1e-06; only weights with 1e-05"),
        (config(num_attention_heads=5), r"model\.heads: 5 does not divide model\.width 32"),
        (lose_a_field, r"config\.json has no 'conv_dim'"),
        (write_nonsense, r"config\.json is no JSON"),
    ],
)
def test_bad_folders(
    spoil: Callable[[Path], None], words: str, folder: Callable[[str], Path]
) -> None:
    path = folder("audio")
    spoil(path)
    with pytest.raises(UserError, match=words) as caught:
        load_pretrained(str(path))
    assert str(caught.value).startswith("MODEL: ")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"use_relative_position_bias": True},
            "found use_relative_position_bias and use_shared_relative_position_bias",
        ),
        (
            {"use_absolute_position_embeddings": True},
            "found use_absolute_position_embeddings and use_shared_relative_position_bias",
        ),
        (
            {"use_shared_relative_position_bias": False},
            r"exactly one of use_absolute_position_embeddings, use_relative_position_bias, use_sha"
            r".* must be true .* found none",
        ),
        ({"image_size": [48, 32]}, r"image_size is \[48, 32\]; only square images"),
        ({"num_channels": 1}, "num_channels is 1"),
    ],
)
def test_images_that_our_encoder_cannot_be(
    fields: dict[str, object], words: str, folder: Callable[[str], Path]
) -> None:
    path = folder("image")
    edit(path / "config.json", **fields)
    with pytest.raises(UserError, match=words):
        load_pretrained(str(path))


def test_a_norm_after_the_last_block_is_not_lost_in_silence(
    folder: Callable[[str], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a folder without mean pooling; only a run's predictors have a use for it."""
    path = folder("image")
    edit(path / "config.json", use_mean_pooling=False)
    width = tensors_of(path)["embeddings.cls_token"].shape[-1]
    norm = {"layernorm.weight": torch.rand(width), "layernorm.bias": torch.rand(width)}
    save_file({**tensors_of(path), **norm}, path / WEIGHTS)
    found = load_pretrained(str(path))
    assert torch.equal(found.backbone.trunk.norm.weight, norm["layernorm.weight"])
    assert f"{path}: config.json has use_mean_pooling=false" in caplog.text
    with pytest.raises(UserError, match=r"has use_mean_pooling=false.*; copy the folder instead"):
        export(str(path), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("modality", ["audio", "image"])
def test_what_nothing_tells_of_the_input_is_not_guessed_in_silence(
    modality: str, folder: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    """As where a model was saved after fine-tuning and its processor was not."""
    path = folder(modality)
    load_pretrained(str(path))
    assert "preprocessor_config.json" not in caplog.text
    (path / "preprocessor_config.json").write_text("{}")
    load_pretrained(str(path))
    assert "has no preprocessor_config.json" not in caplog.text
    (path / "preprocessor_config.json").unlink()
    load_pretrained(str(path))
    assert f"{path} has no preprocessor_config.json; its encoder is taken for one of" in caplog.text


def test_a_tokenizer_that_was_not_saved(folder: Callable[[str], Path]) -> None:
    path = folder("text")
    (path / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=rf"MODEL: {path}: there is no tokenizer\.json; save the"):
        load_pretrained(str(path))


def test_a_tokenizer_with_more_tokens_than_there_are_rows(folder: Callable[[str], Path]) -> None:
    """As where one was added and the weights were not resized; texts without it can be used."""
    path = folder("text")
    tokenizer = json.loads((path / "tokenizer.json").read_text())
    rows = json.loads((path / "config.json").read_text())["vocab_size"]
    added = {**tokenizer["added_tokens"][-1], "id": rows, "content": "<new>"}
    edit(path / "tokenizer.json", added_tokens=[*tokenizer["added_tokens"], added])
    found = load_pretrained(str(path))
    pipeline = found.modality.build_pipeline(found.config)
    assert len(pipeline.plain("beginning")) > 2
    with pytest.raises(BadSample, match="no row for"):
        pipeline.plain("beginning <new>")


def test_a_size_may_be_told_twice(folder: Callable[[str], Path], exported: Exported) -> None:
    path = folder("image")
    size = json.loads((path / "config.json").read_text())["image_size"]
    edit(path / "config.json", image_size=[size, size])
    assert same_weights(path, exported("image"))


def test_a_folder_has_no_teacher(folder: Callable[[str], Path]) -> None:
    with pytest.raises(UserError, match="is a folder of transformers and has no teacher"):
        load_pretrained(str(folder()), "teacher")
