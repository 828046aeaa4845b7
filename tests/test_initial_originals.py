"""A run starts from the files that the original authors wrote, and from nothing that is in them
but weights."""

import argparse
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_runs import SmallRuns, fresh, same

from selfdistill.config import RunConfig
from selfdistill.errors import UserError
from selfdistill.initial_weights import InitialWeights
from selfdistill.objective.data2vec import Data2Vec
from selfdistill.originals import load_original

GOLDEN = Path(__file__).parent / "golden"
sys.path.insert(0, str(GOLDEN))
import replay  # noqa: E402

RECORDINGS = GOLDEN / "recordings"
KINDS = {
    "v1_text": "fairseq",
    "v1_audio_nopad": "fairseq",
    "vision_v1_rand_step": "beit",
    "v2_audio_pad": "fairseq",
    "v2_image": "fairseq",
    "v2_text": "fairseq",
}


def load(source: Path, model: Data2Vec, config: RunConfig) -> None:
    given = replace(config, init_from=str(source))
    weights = InitialWeights(given)
    weights.check()
    weights.load_into(model)


class Settings:
    """Stands for the classes of the originals' settings, which are not installed."""

    def __init__(self) -> None:
        self.lr = [1e-4]


def original(name: str) -> tuple[replay.Recording, Data2Vec]:
    recording = replay.recording(RECORDINGS / f"{name}.safetensors")
    assert recording is not None
    torch.manual_seed(0)
    return recording, Data2Vec(recording.config)


def as_published(recording: replay.Recording, kind: str) -> dict[str, object]:
    student, teacher = recording.part("init"), recording.part("ema_init")
    args = argparse.Namespace(task="pretraining", settings=Settings())
    if kind == "beit":
        return {"model": student, "model_ema": teacher, "optimizer": {}, "epoch": 3, "args": args}
    # of text, the encoder has the teacher
    whose = "encoder." if "encoder.regression_head.0.weight" in student else ""
    model = {**student, f"{whose}_ema": teacher}
    return {"args": args, "cfg": {"model": Settings()}, "model": model, "extra_state": {"epoch": 3}}


@pytest.mark.parametrize("name", KINDS)
def test_an_originals_file(name: str, tmp_path: Path) -> None:
    recording, model = original(name)
    torch.save(as_published(recording, KINDS[name]), tmp_path / "checkpoint.pt")
    load(tmp_path / "checkpoint.pt", model, recording.config)
    report = replay.Report()
    replay.replay_forward(recording, model.train(), recording.batches[0], report)
    assert report.rows
    assert not report.failed()


def test_the_published_text_model(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It has no head of pretraining but one for tokens."""
    recording, model = original("v1_text")
    whole, state = fresh(recording.config, seed=0), recording.part("init")
    state = {name: value for name, value in state.items() if "regression_head" not in name}
    state["encoder.lm_head.dense.weight"] = torch.zeros(48, 48)
    torch.save({"model": state}, tmp_path / "text.pt")
    head = {name: value.clone() for name, value in model.predictors.state_dict().items()}
    load(tmp_path / "text.pt", model, recording.config)
    assert "text.pt holds no prediction head; it is fresh" in caplog.text
    assert same(model.predictors.state_dict(), head)
    load_original(whole, recording.part("init"))
    assert same(model.student.state_dict(), whole.student.state_dict())


def test_scales_of_attention_biases_in_an_older_file(tmp_path: Path) -> None:
    recording, model = original("v2_audio_pad")
    state, name = recording.part("init"), "modality_encoders.AUDIO.alibi_scale"
    scale = state[name]
    state[name] = scale[0]
    torch.save({"model": state}, tmp_path / "audio.pt")
    load(tmp_path / "audio.pt", model, recording.config)
    assert torch.equal(model.student.encoders["audio"].alibi.scale, scale)


def test_a_safetensors_file_has_no_teacher(tmp_path: Path) -> None:
    recording, model = original("v1_text")
    save_file(recording.part("init"), tmp_path / "student.safetensors")
    load(tmp_path / "student.safetensors", model, recording.config)
    assert same(model.student.state_dict(), model.teacher.state_dict())
    theirs, _ = original("v1_text")
    assert not same(model.state_dict(), fresh(theirs.config, seed=0).state_dict())


def test_an_original_of_another_modality(runs: SmallRuns, tmp_path: Path) -> None:
    recording, _ = original("v1_text")
    save_file(recording.part("init"), tmp_path / "student.safetensors")
    config = runs.config("audio")
    with pytest.raises(UserError, match=r"modality is audio here and text there"):
        load(tmp_path / "student.safetensors", fresh(config), config)


def test_an_original_of_another_shape(runs: SmallRuns, tmp_path: Path) -> None:
    recording, _ = original("v1_text")
    save_file(recording.part("init"), tmp_path / "student.safetensors")
    config = runs.config("text", "model.depth=9")
    with pytest.raises(
        UserError, match=r"^init_from: .*student\.safetensors: original .*blocks\.8"
    ):
        load(tmp_path / "student.safetensors", fresh(config), config)


class Canary:
    """Leaves a folder behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_pickled_code_is_not_run(tmp_path: Path) -> None:
    """Wherever it stands: the weights beside it are loaded, and it leaves no trace."""
    canary, path = tmp_path / "canary", tmp_path / "evil.pt"
    recording, model = original("v1_text")
    published = as_published(recording, "fairseq")
    torch.save({"first": Canary(canary), **published, "last": Canary(canary)}, path)
    load(path, model, recording.config)
    assert not canary.exists()
    _, clean = original("v1_text")
    torch.save(published, tmp_path / "clean.pt")
    load(tmp_path / "clean.pt", clean, recording.config)
    assert same(model.state_dict(), clean.state_dict())
    for evil in ({"model": Canary(canary)}, Canary(canary), {"model": {"w": Canary(canary)}}):
        torch.save(evil, path)
        with pytest.raises(UserError, match=r"^init_from: .*evil\.pt"):
            load(path, model, recording.config)
        assert not canary.exists()
    torch.load(path, weights_only=False)
    assert canary.exists()


@pytest.mark.parametrize(
    "content", [[1, 2], {"model": 5}, {"model": {}}, {"model": {}, "model_ema": 5}, {1: 2}]
)
def test_a_file_without_parameters(content: object, runs: SmallRuns, tmp_path: Path) -> None:
    config = runs.config("text")
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(UserError, match=r"^init_from: .*weights\.pt.* parameter"):
        load(tmp_path / "weights.pt", fresh(config), config)


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_what_is_no_checkpoint(name: str, runs: SmallRuns, tmp_path: Path) -> None:
    config = runs.config("text")
    (tmp_path / name).write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match=r"^init_from: .*weights"):
        load(tmp_path / name, fresh(config), config)


def test_a_folders_pickled_code_is_not_run(runs: SmallRuns, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(runs.exported("audio"), tmp_path / "old"))
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    evil = {"first": Canary(tmp_path / "canary"), **tensors}
    torch.save(evil, folder / "pytorch_model.bin")
    config = runs.config("audio")
    old, safe = fresh(config), fresh(config)
    load(folder, old, config)
    assert not (tmp_path / "canary").exists()
    load(runs.exported("audio"), safe, config)
    assert same(old.state_dict(), safe.state_dict())
