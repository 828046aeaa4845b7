"""What is exported can be read again, and is whole or not there."""

import os
import re
import resource
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from modality_cases import EXPORTABLE
from safetensors.torch import load_file
from small_runs import STEPS, SmallRuns, checkpoint, saved

from selfdistill.cli import main
from selfdistill.errors import SelfdistillError
from selfdistill.export import export

WEIGHTS = "model.safetensors"


@pytest.fixture
def copied(runs: SmallRuns, tmp_path: Path) -> Callable[[str], Path]:
    """Modality to a copy of its run."""
    return lambda modality: runs.copy(modality, tmp_path / "copied")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# --- weights


@pytest.mark.parametrize("modality", EXPORTABLE)
def test_what_was_exported_is_exported_again(
    modality: str, runs: SmallRuns, tmp_path: Path
) -> None:
    first = runs.exported(modality)
    export(str(first), tmp_path / "again")
    assert contents(tmp_path / "again") == contents(first)
    assert len(contents(first)) == (5 if modality == "text" else 4)


def test_every_export_is_the_same(runs: SmallRuns, tmp_path: Path) -> None:
    export(str(runs.run("text")), tmp_path / "again")
    assert contents(tmp_path / "again") == contents(runs.exported("text"))


def test_a_run_that_was_moved(
    copied: Callable[[str], Path], runs: SmallRuns, tmp_path: Path
) -> None:
    """Text, whose config names a file of the run's folder."""
    run = copied("text")
    (run / "config.yaml").unlink()
    export(str(run), tmp_path / "out")
    assert contents(tmp_path / "out") == contents(runs.exported("text"))


@pytest.mark.parametrize("modality", ["audio", "image"])
def test_the_teachers_weights(modality: str, runs: SmallRuns, tmp_path: Path) -> None:
    """Audio's reads the student's local features, which then are what is exported."""
    run = runs.run(modality)
    export(str(run), tmp_path / "out", "teacher")
    student, teacher = (
        load_file(path / WEIGHTS) for path in (runs.exported(modality), tmp_path / "out")
    )
    assert student.keys() == teacher.keys()
    model = saved(run, STEPS)
    shared = {"audio": "feature_extractor.", "image": "embeddings.patch_embeddings."}[modality]
    for name in teacher:
        is_copy = modality == "audio" and name.startswith((shared, "feature_projection."))
        assert torch.equal(student[name], teacher[name]) == is_copy, name
    layer, ours = {
        "audio": ("encoder.layers.0.feed_forward.output_dense", "trunk.blocks.0.mlp.fc2"),
        "image": ("encoder.layer.0.output.dense", "trunk.blocks.0.mlp.fc2"),
    }[modality]
    for whose, tensors in (("student", student), ("teacher", teacher)):
        assert torch.equal(tensors[f"{layer}.weight"], model[f"{whose}.{ours}.weight"])


def test_a_checkpoint_gives_its_own_step(runs: SmallRuns, tmp_path: Path) -> None:
    run = runs.run("image")
    export(str(checkpoint(run, 2)), tmp_path / "out")
    earlier = load_file(tmp_path / "out" / WEIGHTS)
    given = saved(run, 2)["student.encoders.image.class_token"]
    assert torch.equal(earlier["embeddings.cls_token"], given)
    newest = load_file(runs.exported("image") / WEIGHTS)
    assert not torch.equal(earlier["embeddings.cls_token"], newest["embeddings.cls_token"])
    assert "after 2 of 3 steps" in (tmp_path / "out" / "README.md").read_text()
    assert "after 3 of 3 steps" in (runs.exported("image") / "README.md").read_text()


def test_pretraining_goes_on_from_what_was_exported(runs: SmallRuns, tmp_path: Path) -> None:
    """And what comes out of that is exported again."""
    words = [f"init_from={runs.exported('text')}", "train.steps=1", "optim.lr=1e-2"]
    assert runs.pretrain("text", tmp_path / "run", *words) == 0
    export(str(tmp_path / "run"), tmp_path / "out")
    before, after = (contents(path) for path in (runs.exported("text"), tmp_path / "out"))
    assert before.keys() == after.keys()
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {WEIGHTS, "README.md"}


# --- the files


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_the_files_have_the_rights_that_the_user_wants(
    mask: int, runs: SmallRuns, tmp_path: Path
) -> None:
    source, before = str(runs.run("text")), os.umask(mask)
    try:
        export(source, tmp_path / "out")
    finally:
        os.umask(before)
    for path in (tmp_path / "out").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask, path.name
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o777 & ~mask


@contextmanager
def small_disk() -> Iterator[None]:
    """No file may grow beyond 10 kB; pytest itself must not write meanwhile."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_nothing(runs: SmallRuns, tmp_path: Path) -> None:
    source = str(runs.run("image"))
    message = r"^--out: cannot write .*out: .*too large"
    with pytest.raises(SelfdistillError, match=message), small_disk():
        export(source, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


# --- what is refused


def test_the_command(runs: SmallRuns, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["export", str(runs.run("audio")), "--weights", "teacher", "--out"]
    capsys.readouterr()
    assert main([*words, str(tmp_path / "out")]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"written to {tmp_path / 'out'}\n"
    assert printed.err == ""
    assert main([*words, str(tmp_path / "out")]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == (
        f"selfdistill: --out: {tmp_path / 'out'} exists and is not empty; choose another folder\n"
    )
    assert main(["export", "nowhere", "--out", str(tmp_path / "out")]) == 2
    assert "--out: " in capsys.readouterr().err  # before anything is loaded
    with pytest.raises(SystemExit) as caught:
        main(words[:2])
    assert caught.value.code == 2


def test_an_upload_is_announced(
    runs: SmallRuns,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It may take long, and the folder is of use before it ends."""
    said = []

    def push(folder: Path, name: str) -> str:
        said.append(capsys.readouterr().err)
        return "there"

    monkeypatch.setattr("selfdistill.export.check_push", lambda name: None)
    monkeypatch.setattr("selfdistill.export.push", push)
    source, out = str(runs.run("image")), tmp_path / "out"
    capsys.readouterr()
    assert export(source, out, push_to="me/mine") == [f"written to {out}, uploaded to there"]
    assert said == [f"written to {out}, uploading it to me/mine\n"]


def full_folder(runs: SmallRuns, folder: Path) -> Path:
    (folder / "out").mkdir()
    (folder / "out" / "mine").write_text("")
    return runs.run("image")


def file_in_the_way(runs: SmallRuns, folder: Path) -> Path:
    (folder / "out").write_text("mine")
    return runs.run("image")


def empty_run(runs: SmallRuns, folder: Path) -> Path:
    (folder / "source").mkdir()
    return folder / "source"


def file(runs: SmallRuns, folder: Path) -> Path:
    return checkpoint(runs.run("image"), STEPS) / WEIGHTS


def damaged_run(runs: SmallRuns, folder: Path) -> Path:
    source = runs.copy("image", folder / "source")
    for step in (2, STEPS):
        weights = checkpoint(source, step) / WEIGHTS
        content = weights.read_bytes()
        weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    return source


def damaged_checkpoint(runs: SmallRuns, folder: Path) -> Path:
    return checkpoint(damaged_run(runs, folder), STEPS)


def missing(runs: SmallRuns, folder: Path) -> Path:
    return folder / "nowhere"


def no_tokenizer(runs: SmallRuns, folder: Path) -> Path:
    source = runs.copy("text", folder / "source")
    (source / "tokenizer.json").unlink()
    return source


def teacher_of_a_folder(runs: SmallRuns, folder: Path) -> Path:
    return runs.exported("image")


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (full_folder, r"--out: .*out exists and is not empty; choose another folder"),
        (file_in_the_way, r"--out: .*out exists and is not empty"),
        (empty_run, r"MODEL: no checkpoint in '.*source'; expected a folder like"),
        (file, r"MODEL: .*model\.safetensors is a file; give a run, a checkpoint or a folder"),
        (damaged_run, r".*source/checkpoints: all 2 checkpoints are damaged"),
        (damaged_checkpoint, r".*step-00000003/model\.safetensors is damaged: .*SHA-256"),
        (missing, r"MODEL: there is no .*nowhere; give a run's folder, a checkpoint, a folder of"),
        (no_tokenizer, r".*cannot read .*source/tokenizer\.json"),
        (teacher_of_a_folder, r"--weights: .* is a folder of transformers and has no teacher"),
    ],
)
def test_a_refusal_is_one_line_and_leaves_nothing(
    prepare: Callable[[SmallRuns, Path], Path],
    words: str,
    runs: SmallRuns,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = prepare(runs, tmp_path)
    before = sorted(tmp_path.rglob("*"))
    capsys.readouterr()
    assert (
        main(["export", str(source), "--out", str(tmp_path / "out"), "--weights", "teacher"]) == 2
    )
    printed = capsys.readouterr()
    assert re.match(f"selfdistill: {words}", printed.err), printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""
    assert sorted(tmp_path.rglob("*")) == before


def test_a_damaged_newest_checkpoint_is_passed_over(
    copied: Callable[[str], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = copied("image")
    (checkpoint(run, STEPS) / "state.json").write_text("{}")
    export(str(run), tmp_path / "out")
    assert "the checkpoint before it is tried" in caplog.text
    assert "after 2 of 3 steps" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("modality", "words", "said"),
    [
        ("image", ["input.size=[16,24]"], "cannot hold input.size=[16, 24]"),
        ("image", ["input.size=[16,24]"], "pretrain on square images to export"),
        (
            "audio",
            ["model.norm_order=pre"],
            "cannot hold model.norm_order=pre; pretrain with model.norm_order=post to export",
        ),
    ],
)
def test_what_no_class_can_hold(
    modality: str,
    words: list[str],
    said: str,
    runs: SmallRuns,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It is said when the run begins, and the export is refused."""
    assert runs.pretrain(modality, tmp_path / "run", "train.steps=1", *words) == 0
    first, second, *_ = capsys.readouterr().err.splitlines()
    assert first.startswith("pretraining an encoder")
    assert second.startswith("transformers will not be able to load this encoder: Data2Vec")
    assert said in second
    assert main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("selfdistill: export: ")
    assert "cannot be loaded by transformers: Data2Vec" in error
    assert said in error
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_what_a_class_can_hold_needs_no_word(
    runs: SmallRuns, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert runs.pretrain("image", tmp_path / "run", "train.steps=1") == 0
    error = capsys.readouterr().err
    assert "pretraining an encoder" in error
    assert "transformers" not in error
