"""A run starts from weights that exist: ours, or an original's in the files its authors write."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from selfdistill.config import RunConfig
from selfdistill.engine.checkpoint import Checkpoint, Checkpointer
from selfdistill.errors import UserError
from selfdistill.initial_weights import load_initial_weights
from selfdistill.modalities.base import load_modality
from selfdistill.objective.data2vec import Data2Vec

GOLDEN = Path(__file__).parent / "golden"
sys.path.insert(0, str(GOLDEN))
import replay  # noqa: E402

RECORDINGS = GOLDEN / "recordings"
KINDS = {"v1_text": "fairseq", "v1_audio_nopad": "fairseq", "vision_v1_rand_step": "beit"}


Fresh = Callable[..., Data2Vec]


@pytest.fixture
def fresh(tiny_config: Callable[..., RunConfig]) -> Fresh:
    """(seed, SECTION={...}) to a tiny text model with fresh weights."""

    def make(seed: int, **sections: dict[str, object]) -> Data2Vec:
        torch.manual_seed(seed)
        return Data2Vec(load_modality("text"), tiny_config("text", **sections))

    return make


def original(name: str) -> tuple[replay.Recording, Data2Vec]:
    recording = replay.recording(RECORDINGS / f"{name}.safetensors")
    assert recording is not None
    torch.manual_seed(0)
    return recording, Data2Vec(recording.modality, recording.config)


def as_published(recording: replay.Recording, kind: str) -> dict[str, object]:
    student, teacher = recording.part("init"), recording.part("ema_init")
    if kind == "beit":
        return {"model": student, "model_ema": teacher, "epoch": 3}
    return {"model": {**student, "_ema": teacher}, "extra_state": {"epoch": 3}}


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


@pytest.mark.parametrize("name", KINDS)
def test_an_originals_file(name: str, tmp_path: Path) -> None:
    recording, model = original(name)
    torch.save(as_published(recording, KINDS[name]), tmp_path / "checkpoint.pt")
    load_initial_weights(model, tmp_path / "checkpoint.pt")
    report = replay.Report()
    replay.replay_forward(recording, model.train(), recording.batches[0], report)
    assert report.rows
    assert not report.failed()


def test_a_safetensors_file_has_no_teacher(tmp_path: Path) -> None:
    recording, model = original("v1_text")
    save_file(recording.part("init"), tmp_path / "student.safetensors")
    load_initial_weights(model, tmp_path / "student.safetensors")
    assert same(model.student.state_dict(), model.teacher.backbone.state_dict())


def test_a_run_of_ours(fresh: Fresh, tmp_path: Path) -> None:
    trained, model = fresh(seed=1), fresh(seed=2)
    Checkpointer(tmp_path / "checkpoints", keep=1).save(
        Checkpoint(5, trained.state_dict(), {}, {"config": {}})
    )
    assert not same(model.state_dict(), trained.state_dict())
    load_initial_weights(model, tmp_path)
    assert same(model.state_dict(), trained.state_dict())


def test_another_architecture_is_refused(fresh: Fresh, tmp_path: Path) -> None:
    trained = fresh(seed=1)
    Checkpointer(tmp_path / "checkpoints", keep=1).save(
        Checkpoint(5, trained.state_dict(), {}, {"config": {}})
    )
    other = fresh(seed=1, objective={"head_layers": 3})
    with pytest.raises(UserError, match=r"init_from: .* does not fit the model: .*head\.2"):
        load_initial_weights(other, tmp_path)


class Canary:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_pickled_code_is_not_run(fresh: Fresh, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    torch.save({"model": {}, "args": Canary(canary)}, tmp_path / "evil.pt")
    with pytest.raises(UserError, match=r"init_from: .*pickled objects"):
        load_initial_weights(fresh(seed=1), tmp_path / "evil.pt")
    assert not canary.exists()


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_what_is_no_checkpoint(name: str, fresh: Fresh, tmp_path: Path) -> None:
    model = fresh(seed=1)
    with pytest.raises(UserError, match="init_from: cannot read"):
        load_initial_weights(model, tmp_path / name)
    (tmp_path / name).write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match="init_from: "):
        load_initial_weights(model, tmp_path / name)
    with pytest.raises(UserError, match="init_from: no checkpoint in"):
        load_initial_weights(model, tmp_path)
