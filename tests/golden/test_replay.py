"""The recordings of the originals are reproduced, and a wrong implementation is found out."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import recording
import replay
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from selfdistill.config import CompatConfig, RunConfig
from selfdistill.errors import UserError
from selfdistill.modalities.base import load_modality
from selfdistill.objective.data2vec import Data2Vec
from selfdistill.originals import load_original, original_config, trained_part
from selfdistill.renaming import to_theirs

RECORDINGS = Path(__file__).parent / "recordings"
AUDIO, TEXT, SHORT_TEXT = "v1_audio_pad", "v1_text", "v1_text_padtargets"
IMAGE, IMAGE_RUN = "vision_v1_rand_step", "vision_v1_rand_traj_noclip"
AUDIO_2, IMAGE_2, TEXT_2 = "v2_audio_pad", "v2_image", "v2_text"


def replay_file(name: str) -> int:
    return replay.main([str(RECORDINGS / f"{name}.safetensors")])


@pytest.mark.parametrize("path", sorted(RECORDINGS.glob("*.safetensors")), ids=lambda p: p.stem)
def test_the_original_is_reproduced(path: Path) -> None:
    assert replay.main([str(path)]) == 0


@pytest.mark.parametrize(
    ("name", "section", "changes"),
    [
        (AUDIO, "compat", {"padding_in_target_statistics": False, "padding_in_positions": False}),
        (AUDIO, "compat", {"padding_in_target_statistics": False}),
        (AUDIO, "compat", {"padding_in_positions": False}),
        (AUDIO, "objective", {"layer_norms": ["batch"]}),
        (AUDIO, "teacher", {"copied": []}),
        (TEXT, "optim", {"weight_decay": 0.0}),
        (TEXT, "teacher", {"copied": ["encoder.local"]}),
        (SHORT_TEXT, "compat", {"masked_only_teacher": False}),
        (SHORT_TEXT, "model", {"norm_eps": 1e-6}),
        (SHORT_TEXT, "model", {"heads": 2}),
        (SHORT_TEXT, "objective", {"average_top_k_layers": 3}),
        (SHORT_TEXT, "objective", {"target_from": "block"}),
        (SHORT_TEXT, "objective", {"loss_beta": 1.0}),
        (SHORT_TEXT, "objective", {"loss_scale": "rsqrt_width"}),
        (IMAGE, "model", {"norm_eps": 1e-5}),
        (IMAGE, "objective", {"target_norms": []}),
        (IMAGE, "objective", {"target_layers": [0, 1, 2]}),
        (IMAGE_RUN, "compat", {"averaged_index_buffers": False}),
        (IMAGE_RUN, "compat", {"ema_epoch_steps": 0}),
        (AUDIO_2, "compat", {"padding_in_target_statistics": False}),
        (AUDIO_2, "compat", {"padding_in_features": False}),
        (AUDIO_2, "decoder", {"residual": False}),
        (AUDIO_2, "decoder", {"mask_noise_std": 0.01}),
        (IMAGE_2, "compat", {"summed_class_loss": False}),
        (IMAGE_2, "model", {"norm_eps": 1e-5}),
        (IMAGE_2, "objective", {"target_norms": []}),
        (IMAGE_2, "objective", {"cls_loss": 0.0}),
        (TEXT_2, "compat", {"padding_in_features": False}),
        (TEXT_2, "decoder", {"residual": True}),
        (TEXT_2, "teacher", {"ema_decay": 0.91}),
    ],
)
def test_a_wrong_setting_is_found_out(
    name: str, section: str, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = recording.original_config

    def wrong(*args: Any) -> Any:
        config = right(*args)
        return replace(config, **{section: replace(getattr(config, section), **changes)})

    monkeypatch.setattr(recording, "original_config", wrong)
    assert replay_file(name) == 1


def test_reduced_precision_is_off_while_it_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Data2Vec.forward
    seen = set()

    def watched(self: Data2Vec, *given: Any) -> Any:
        seen.add(torch.backends.cudnn.allow_tf32)
        return plain(self, *given)

    monkeypatch.setattr(Data2Vec, "forward", watched)
    before = torch.backends.cudnn.allow_tf32
    assert replay_file(SHORT_TEXT) == 0
    assert seen == {False}
    assert torch.backends.cudnn.allow_tf32 == before


def test_tanh_gelu_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = torch.nn.functional.gelu
    monkeypatch.setattr(torch.nn.functional, "gelu", lambda x, **_: exact(x, approximate="tanh"))
    assert replay_file(SHORT_TEXT) == 1


@pytest.mark.parametrize("name", [TEXT, IMAGE_RUN])
def test_a_decay_of_the_next_step_is_found_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right: Callable[..., float] = replay.ema_decay
    monkeypatch.setattr(replay, "ema_decay", lambda step, *rest: right(step + 1, *rest))
    assert replay_file(name) == 1


@pytest.mark.parametrize(
    "tensor",
    [
        "out.targets",
        "out.predictions",
        "out.teacher_layer.2",
        "out.loss",
        "grad.encoder.sentence_encoder.layers.1.fc1.weight",
        "traj.loss",
        "final.encoder.regression_head.2.bias",
        "ema_final.layers.2.self_attn.q_proj.weight",
    ],
)
def test_each_kind_of_tensor_is_compared(tensor: str, tmp_path: Path) -> None:
    source = RECORDINGS / f"{TEXT}.safetensors"
    with safe_open(str(source), framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(source)
    tensors[tensor].view(-1)[-1] += 1e-3
    save_file(tensors, tmp_path / "changed.safetensors", metadata=metadata)
    assert replay.main([str(tmp_path / "changed.safetensors")]) == 1


def settings_of(name: str) -> dict[str, Any]:
    with safe_open(str(RECORDINGS / f"{name}.safetensors"), framework="pt") as file:
        metadata = file.metadata()
    return json.loads(metadata.get("json") or metadata["meta"])["config"]


def config_of(modality: str, settings: dict[str, Any], extra: dict[str, Any]) -> RunConfig:
    """Of data2vec 1.0's settings."""
    declared = load_modality(modality)
    return original_config(declared, declared.originals[0], settings, extra)


def meta_shapes(modality: str, settings: dict[str, Any], **extra: Any) -> dict[str, list[int]]:
    with torch.device("meta"):
        model = Data2Vec(config_of(modality, settings, extra))
    return {n: list(p.shape) for n, p in trained_part(model.state_dict(), modality).items()}


def test_an_audio_original_of_another_size_is_built() -> None:
    changes = {
        "encoder_embed_dim": 64,
        "encoder_ffn_embed_dim": 96,
        "encoder_layers": 3,
        "encoder_attention_heads": 8,
        "conv_feature_layers": "[(16, 8, 4), (24, 3, 3)]+[(32,2,2)]*2",
        "conv_bias": True,
        "conv_pos": 12,
        "pos_conv_depth": 3,
        "conv_pos_groups": 8,
        "average_top_k_layers": 3,
        "loss_scale": 0.25,
        "loss_beta": 0.5,
    }
    settings = settings_of(AUDIO) | changes
    shapes = meta_shapes("audio", settings)
    assert shapes["encoder.local.convs.1.conv.weight"] == [24, 16, 3]
    assert shapes["encoder.local.convs.3.conv.bias"] == [32]
    assert shapes["encoder.positions.convs.2.weight"] == [64, 8, 4]
    assert shapes["trunk.blocks.2.mlp.fc1.weight"] == [96, 64]
    assert "trunk.blocks.3.norm1.weight" not in shapes
    objective = config_of("audio", settings, {}).objective
    assert (objective.loss_scale, objective.loss_beta) == (0.25, 0.5)
    assert objective.average_top_k_layers == 3


@pytest.mark.parametrize("layers", [1, 2, 4])
def test_a_text_original_with_another_head_is_built(layers: int) -> None:
    settings = settings_of(TEXT) | {"head_layers": layers, "loss_beta": 0.0, "loss_scale": 0.0}
    shapes = meta_shapes("text", settings, encoder={"vocab_size": 33, "mask_id": 32})
    heads = [name for name in shapes if name.startswith("head.") and name.endswith("weight")]
    assert heads == [f"head.{2 * i}.weight" for i in range(layers)]
    assert shapes["encoder.local.weight"] == [33, 48]
    objective = config_of("text", settings, {}).objective
    assert (objective.loss_beta, objective.loss_scale) == (0.0, "rsqrt_width")


def test_an_image_original_of_another_size_is_built() -> None:
    changes = {
        "img": [24, 40],
        "patch": 8,
        "dim": 40,
        "depth": 5,
        "heads": 5,
        "mlp_ratio": 2.37,
        "target_layers": [0, -1],
        "num_mask": 7,
        "max_block": 5,
    }
    shapes = meta_shapes("image", settings_of(IMAGE) | changes)
    table = "encoder.relative_bias.relative_position_bias_table"
    assert shapes[table] == [5 * 9 + 3, 5]  # a grid of 3 x 5
    assert shapes["trunk.blocks.4.mlp.fc2.weight"] == [40, 94]  # 94.8, cut off
    objective = config_of("image", settings_of(IMAGE) | changes, {}).objective
    assert objective.target_layers == [0, 4]
    assert (objective.target_from, objective.layer_norms) == ("block", ["layer"])
    assert objective.target_norms == ["layer"]


def test_switches_of_an_image_originals_targets() -> None:
    switches = {
        "layer_results": "fc",
        "target_batch_norm": True,
        "target_layer_norm_last": False,
        "post_target_instance_norm": True,
    }
    objective = config_of("image", settings_of(IMAGE) | switches, {}).objective
    assert (objective.target_from, objective.layer_norms) == ("ffn", ["batch"])
    assert objective.target_norms == ["instance", "layer"]


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (AUDIO, {"activation_fn": "relu"}, "activation_fn='relu'"),
        (
            AUDIO,
            {"instance_norm_target_layer": False, "instance_norm_targets": True},
            "instance_norm_targets=True",
        ),
        (AUDIO, {"loss_scale": 0.0}, r"objective\.loss_scale: 0\.0"),
        (TEXT_2, {"loss_scale": -1.0}, r"objective\.loss_scale: -1\.0"),
        (TEXT_2, {"d2v_loss": 0.0}, "d2v_loss=0.0"),
        (IMAGE, {"var_w0": 1.0}, "var_w0=1.0"),
        (IMAGE, {"target_layers": [3, -1]}, r"\[3, 3\] names a layer twice"),
    ],
)
def test_what_would_compute_something_else_is_refused(
    name: str, changes: dict[str, Any], message: str
) -> None:
    rec = recording.recording(RECORDINGS / f"{name}.safetensors")
    assert rec is not None
    with pytest.raises(UserError, match=message):
        original_config(rec.modality, rec.original, settings_of(name) | changes, {})


def test_an_image_originals_decoder_ends_in_one_layer() -> None:
    """Of 2.0, whatever its settings say."""
    settings = settings_of(IMAGE_2)
    settings["modalities"]["image"]["decoder"]["projection_layers"] = 2
    modality = load_modality("image")
    original = next(o for o in modality.originals if "IMAGE" in o.marker)
    assert original_config(modality, original, settings, {}).decoder.projection_layers == 1


def test_tables_of_each_block_of_an_image_original() -> None:
    rec = recording.recording(RECORDINGS / f"{IMAGE}.safetensors")
    assert rec is not None
    state, rows = rec.part("init"), "relative_position_bias_table"
    table = state.pop(f"rel_pos_bias.{rows}")
    del state["rel_pos_bias.relative_position_index"]
    state |= {f"blocks.{block}.attn.{rows}": table + block for block in range(4)}
    tensors = {f"init.{name}": value for name, value in state.items()}
    tensors["input.images"] = rec.tensors["input.images"]
    model = Data2Vec(recording.image_recording(tensors, rec.meta).config)
    load_original(model, state)
    for block, bias in enumerate(model.student.encoders["image"].relative_bias):
        assert torch.equal(bias.relative_position_bias_table, table + block)


def test_a_pre_norm_text_original_is_built() -> None:
    settings = settings_of(TEXT)
    settings["transformer"]["encoder"]["normalize_before"] = True
    settings["transformer"]["max_source_positions"] = 30  # of 64
    shapes = meta_shapes("text", settings, encoder={"vocab_size": 33, "mask_id": 32})
    assert shapes["trunk.norm.weight"] == [48]
    assert shapes["encoder.positions.weight"] == [32, 48]
    theirs = to_theirs(
        {n: torch.empty(0) for n in shapes}, load_modality("text").originals[0].names
    )
    assert "encoder.sentence_encoder.layer_norm.weight" in theirs


def changed(name: str, folder: Path, config: dict[str, Any], **meta: Any) -> Path:
    """A copy of a recording with other settings, and more beside them."""
    source, path = RECORDINGS / f"{name}.safetensors", folder / f"{name}.safetensors"
    with safe_open(str(source), framework="pt") as file:
        ((key, header),) = file.metadata().items()
    content = json.loads(header)
    content |= {"config": content["config"] | config, **meta}
    save_file(load_file(source), path, metadata={key: json.dumps(content)})
    return path


def test_how_recorded_masks_were_drawn_does_not_matter(tmp_path: Path) -> None:
    modalities = settings_of(TEXT_2)["modalities"]
    modalities["text"] |= {"inverse_mask": True, "mask_length": 3}
    assert replay.main([str(changed(TEXT_2, tmp_path, {"modalities": modalities}))]) == 0


def test_a_decay_of_one_leaves_the_whole_teacher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(Data2Vec, "update_teacher")
    monkeypatch.setattr(replay, "load_original", lambda *_: None)
    path = changed(TEXT, tmp_path, {"ema_decay": 1.0, "ema_end_decay": 1.0})
    assert replay.main([str(path)]) == 1  # the recorded teacher did move


@pytest.mark.parametrize("rounding", [0.0, 1e-3])
def test_weights_that_rounding_moved_have_more_room(rounding: float, tmp_path: Path) -> None:
    for part in ("step", "trajdata"):
        name = f"vision_v1_{'rand_' if part == 'step' else ''}{part}.safetensors"
        (tmp_path / name).symlink_to(RECORDINGS / name)
    path = changed(IMAGE_RUN, tmp_path, {}, fp32_vs_fp64={"final": rounding})
    with safe_open(str(path), framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    tensors["final.lm_head.weight"][0, 0] += 3e-3
    tensors["ema_final.norm.weight"][0] += 1e-3
    save_file(tensors, path, metadata=metadata)
    assert replay.main([str(path)]) == (0 if rounding else 1)


def test_a_classifier_without_layer_scale() -> None:
    tensors, meta = recording.read(RECORDINGS / f"{IMAGE}.safetensors")
    tensors = {name: value for name, value in tensors.items() if "gamma" not in name}
    meta["config"]["classes"] = 7
    assert recording.image_recording(tensors, meta).config.model.layer_scale == 0


def test_compat_is_off_unless_a_replay_asks_for_it() -> None:
    config = config_of("audio", settings_of(AUDIO), {})
    assert config.compat == CompatConfig()
