"""Encoders that exist are found and loaded, whatever keeps them."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from modality_cases import EXPORTABLE, MODALITIES
from safetensors.torch import load_file, save_file
from small_runs import JOINT, STEPS, SmallRuns, below, checkpoint, same, saved
from torch import Tensor

from selfdistill import pretrained
from selfdistill.engine.checkpoint import Checkpointer
from selfdistill.engine.checkpoint_files import read_checkpoint
from selfdistill.errors import UserError
from selfdistill.modalities.base import load_modality
from selfdistill.objective.state import of_student, of_teacher
from selfdistill.pretrained import (
    Pretrained,
    Weights,
    load_all,
    load_pretrained,
    locate,
    run_folder,
)


def state_of(found: Pretrained) -> dict[str, Tensor]:
    return found.backbone.state_dict()


def check_ready(found: Pretrained) -> None:
    """To be used as it is: nothing is dropped, and no weight is of another type or place."""
    assert not any(module.training for module in found.backbone.modules())
    for tensor in found.backbone.parameters():
        assert (tensor.dtype, tensor.device.type) == (torch.float32, "cpu")


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_run_gives_its_newest_checkpoint(modality: str, runs: SmallRuns) -> None:
    run = runs.run(modality)
    found = load_pretrained(str(run))
    check_ready(found)
    model = saved(run, STEPS)
    assert same(state_of(found), of_student(model, modality))
    assert (found.source, found.companions) == (checkpoint(run, STEPS), run)
    assert (found.step, found.weights) == (STEPS, "student")
    assert found.modality is load_modality(modality)
    assert found.config.model == runs.config(modality).model
    assert found.config.encoder == runs.config(modality).encoder


def test_a_checkpoint_gives_its_own_step(runs: SmallRuns) -> None:
    path = checkpoint(runs.run("image"), 2)
    found = load_pretrained(str(path))
    check_ready(found)
    assert (found.step, found.source, found.companions) == (2, path, runs.run("image"))
    student = of_student(saved(runs.run("image"), 2), "image")
    assert same(state_of(found), student)
    assert not same(state_of(load_pretrained(str(runs.run("image")))), student)


@pytest.mark.parametrize("modality", EXPORTABLE)
def test_a_folder_of_transformers(modality: str, runs: SmallRuns) -> None:
    folder = runs.exported(modality)
    found, run = load_pretrained(str(folder)), load_pretrained(str(runs.run(modality)))
    check_ready(found)
    assert (found.step, found.weights) == (None, "student")
    assert (found.source, found.companions) == (folder, folder)
    assert found.modality is run.modality
    dropped = [name.rstrip("*") for name in run.modality.hub.dropped] if run.modality.hub else []
    ours = dict(found.backbone.named_parameters())
    for name, tensor in run.backbone.named_parameters():
        assert torch.equal(ours[name], tensor) or name.startswith(tuple(dropped)), name
    for key in ("width", "depth", "heads", "mlp_ratio", "norm_order", "norm_eps", "key_bias"):
        assert getattr(found.config.model, key) == getattr(run.config.model, key)


def test_weights_of_half_precision(runs: SmallRuns, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(runs.exported("image"), tmp_path / "half"))
    tensors = load_file(folder / "model.safetensors")
    save_file({n: t.bfloat16() for n, t in tensors.items()}, folder / "model.safetensors")
    found = load_pretrained(str(folder))
    check_ready(found)
    token = tensors["embeddings.cls_token"]
    assert torch.equal(found.backbone.encoder.class_token, token.bfloat16().float())


@pytest.mark.parametrize("modality", MODALITIES)
def test_the_teacher(modality: str, runs: SmallRuns) -> None:
    """What it shares is the student's; all that it has of its own is its own."""
    run = runs.run(modality)
    found = load_pretrained(str(run), "teacher")
    check_ready(found)
    assert (found.step, found.weights) == (STEPS, "teacher")
    model = saved(run, STEPS)
    student, teacher = of_student(model, modality), of_teacher(model, modality)
    shared = {name for name in student if name.startswith("encoder.local.")}
    assert shared
    scope = runs.config(modality).teacher.scope
    assert student.keys() - teacher.keys() == (set() if scope == "all" else shared)
    assert same(state_of(found), {**student, **teacher})
    for name, tensor in found.backbone.named_parameters():
        assert torch.equal(tensor, student[name]) == (name not in teacher), name


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize("weights", ["student", "teacher"])
def test_one_modality_of_several(modality: str, weights: Weights, runs: SmallRuns) -> None:
    run = runs.run(JOINT)
    found = load_pretrained(str(run), weights, modality=modality)
    check_ready(found)
    model = saved(run, STEPS)
    student, teacher = of_student(model, modality), of_teacher(model, modality)
    assert not same(student, {**student, **teacher})
    assert same(state_of(found), student if weights == "student" else {**student, **teacher})
    assert found.modality is load_modality(modality)
    assert found.config.encoder == runs.config(JOINT).modalities[modality].encoder
    assert [*found.trained_with] == [name for name in MODALITIES if name != modality]


@pytest.mark.parametrize(
    ("modality", "words"),
    [
        ("", f"is of a run over {', '.join(MODALITIES)}; name one"),
        ("smell", "has no smell encoder; it"),
    ],
)
def test_a_modality_must_be_named_where_there_are_several(
    modality: str, words: str, runs: SmallRuns
) -> None:
    with pytest.raises(UserError, match=f"^--modality: .*step-00000003 {words}"):
        load_pretrained(str(runs.run(JOINT)), modality=modality)


@pytest.mark.parametrize("kind", ["run", "folder"])
def test_the_modality_of_one(kind: str, runs: SmallRuns) -> None:
    source = str(runs.run("image") if kind == "run" else runs.exported("image"))
    assert same(
        state_of(load_pretrained(source)), state_of(load_pretrained(source, modality="image"))
    )
    with pytest.raises(UserError, match=r"^--modality: .* has no text encoder; it has image"):
        load_pretrained(source, modality="text")


def test_all_modalities(runs: SmallRuns) -> None:
    found = load_all(str(runs.run(JOINT)))
    assert list(found) == list(MODALITIES)
    blocks = [below("trunk.", state_of(one)) for one in found.values()]
    assert blocks[0]
    assert all(same(blocks[0], others) for others in blocks[1:])
    assert list(load_all(str(runs.exported("text")))) == ["text"]


def test_the_tokenizer_is_that_of_the_folder(runs: SmallRuns, tmp_path: Path) -> None:
    """Wherever the run has gone since; its config still names the old place."""
    run = runs.copy("text", tmp_path / "moved")
    for path, folder in (
        (run, run),
        (checkpoint(run, 2), run),
        (run / "checkpoints", run),
        (runs.exported("text"), runs.exported("text")),
    ):
        found = load_pretrained(str(path))
        assert found.companions == folder
        assert found.config.input.tokenizer == str(folder / "tokenizer.json")


def test_the_folder_of_a_relative_checkpoint(
    runs: SmallRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(checkpoint(runs.run("image"), 2))
    assert load_pretrained(".").step == 2
    assert run_folder(Path()) == runs.run("image")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("nowhere", r"there is no nowhere; give a run's folder, a checkpoint, a folder of transf"),
        ("a/b/c", r"there is no a/b/c; give"),
        ("", r"no checkpoint in '\.'"),
        ("~no-such-user/run", r"cannot read ~no-such-user/run: .*home"),
        ("a" * 300, r"(cannot read a{300}: .*name too long|there is no a{300}; give)"),
        ("config.yaml", r"config\.yaml is a file; give a run, a checkpoint or a folder"),
        ("empty", r"no checkpoint in 'empty'; expected a folder like RUN/checkpoints/step-"),
    ],
)
def test_what_cannot_be_loaded(
    source: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "config.yaml").write_text("modality: image\n")
    with pytest.raises(UserError, match=f"^MODEL: {words}"):
        load_pretrained(source)


def test_a_folder_has_no_teacher(runs: SmallRuns) -> None:
    with pytest.raises(UserError, match=r"^--weights: .* is a folder of transformers and has no"):
        load_pretrained(str(runs.exported("image")), "teacher")


def test_a_damaged_checkpoint(runs: SmallRuns, tmp_path: Path) -> None:
    run = runs.copy("image", tmp_path / "run")
    (checkpoint(run, STEPS) / "state.json").write_text("{}")
    with pytest.raises(UserError, match=r"step-00000003/state\.json is damaged"):
        load_pretrained(str(checkpoint(run, STEPS)))
    assert load_pretrained(str(run)).step == 2


def test_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert locate("~", "MODEL") == tmp_path


def test_a_name_on_the_hub(
    runs: SmallRuns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what can be a repository's name, and is no path here, is looked for there."""
    asked = []

    def download(name: str, key: str) -> Path:
        asked.append((name, key))
        return runs.exported("audio")

    monkeypatch.setattr(pretrained, "download", download)
    monkeypatch.chdir(tmp_path)
    assert load_pretrained("someone/encoder").source == runs.exported("audio")
    assert asked == [("someone/encoder", "MODEL")]
    (tmp_path / "some").mkdir()
    shutil.copytree(runs.exported("audio"), tmp_path / "some" / "encoder")
    assert load_pretrained("some/encoder").source == Path("some/encoder")
    for name in ("a/b/c", "/a", "../a", "a/", "a b/c", "encoder", "-a/b"):
        with pytest.raises(UserError, match=f"there is no {name};"):
            load_pretrained(name)
    assert len(asked) == 1


def of_another_version(path: Path, run: Path, section: str) -> Path:
    """A copy of a run's checkpoint with a key that this version does not know."""
    kept = read_checkpoint(checkpoint(run, STEPS))
    config = kept.state["config"]
    for part in (config, *config.get("modalities", {}).values()):
        part[section] = {**(part[section] or {}), "flux": 1}
    state = {**kept.state, "config": config}
    return Checkpointer(path, keep=1).save(replace(kept, state=state))


@pytest.mark.parametrize("modality", ["text", JOINT])
def test_settings_of_training_that_are_gone(modality: str, runs: SmallRuns, tmp_path: Path) -> None:
    run = runs.copy(modality, tmp_path / "run")
    path = of_another_version(run / "checkpoints", run, "guard")
    shutil.rmtree(checkpoint(run, 2))
    for name, found in load_all(str(path)).items():
        wanted = load_all(str(runs.run(modality)))[name]
        assert same(state_of(found), state_of(wanted))


def test_settings_of_the_encoder_that_are_gone(runs: SmallRuns, tmp_path: Path) -> None:
    path = of_another_version(tmp_path, runs.run("text"), "encoder")
    with pytest.raises(
        UserError, match=r"written by another version .* encoder\.flux: no such key"
    ):
        load_all(str(path))
