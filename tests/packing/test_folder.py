"""Whose a folder is."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from selfdistill.errors import UserError
from selfdistill.packing.declaration import Job
from selfdistill.packing.entries import Entry
from selfdistill.packing.folder import begin, forget, locked, publish, put_beside, tidy, writing
from selfdistill.packing.inputs import Inputs


@dataclass(frozen=True)
class Options:
    max_side: int = 0
    kinds: tuple[str, ...] = ("a",)


INPUTS = Inputs.of([Entry("/none/a.wav", "a.wav")])


def start(folder: Path, inputs: Inputs = INPUTS, seed: int = 0, size: int = 1, **own: Any) -> bool:
    job = Job(folder, Options(**own), seed)
    with locked(job):
        return begin(job, inputs, {"modality": "image", "shard-size": size})


def test_the_same_is_begun_once(tmp_path: Path) -> None:
    assert start(tmp_path / "a/b")
    assert not start(tmp_path / "a/b")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 3}, "seed 0, this is seed 3"),
        ({"size": 2}, "shard-size 1, this is shard-size 2"),
        ({"max_side": 9}, "max-side 0, this is max-side 9"),
        ({"inputs": Inputs.of([])}, r"other inputs: 1 gone \(a\.wav\)"),
    ],
)
def test_something_else_is_refused(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    start(tmp_path)
    with pytest.raises(UserError, match=rf"^--out: .* was begun with {words}"):
        start(tmp_path, **changes)
    assert not start(tmp_path)


def test_other_people_s_files_are_not_touched(tmp_path: Path) -> None:
    for name in ("thesis.writing", ".old.writing"):
        (tmp_path / name).write_text("x")
    with pytest.raises(UserError, match=r"is not empty \(thesis\.writing\); give a new folder"):
        start(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"thesis.writing", ".old.writing"}
    job = Job(tmp_path, Options())
    forget(job)
    assert {path.name for path in tmp_path.iterdir()} == {"thesis.writing", ".old.writing"}


def test_a_folder_without_its_state_is_refused(tmp_path: Path) -> None:
    start(tmp_path)
    shutil.rmtree(tmp_path / ".pack")
    with pytest.raises(UserError, match=r"its \.pack/inputs\.npz is gone.*; give a new folder"):
        start(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["pack.json"]


def test_what_a_kill_left_half_written_is_removed(tmp_path: Path) -> None:
    start(tmp_path)
    (tmp_path / ".index.json.writing").write_text("{")
    (tmp_path / "mine.writing").write_text("x")
    assert not start(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".pack", "pack.json", "mine.writing"}


def test_nothing_is_taken_over_from_a_job_that_was_half_forgotten(tmp_path: Path) -> None:
    start(tmp_path)
    state, job = tmp_path / ".pack", Job(tmp_path, Options())
    for name in ("lot-000000.npz", "lot-000000.spill", "train-000000.tar.json", "beside/t.json"):
        (state / name).touch()
    (tmp_path / "pack.json").unlink()  # the first thing that goes
    assert start(tmp_path, size=2)
    assert {path.name for path in state.iterdir()} == {"beside", "inputs.npz", "lock"}
    assert list(job.beside.iterdir()) == []


def test_a_killed_begin_is_no_obstacle(tmp_path: Path) -> None:
    with locked(Job(tmp_path, Options())):
        (tmp_path / ".pack.json.writing").write_text("{")
        (tmp_path / ".pack/train-000000.tar.7.writing").write_text("x")
    assert start(tmp_path)
    assert not list(tmp_path.rglob("*.writing"))


def test_what_is_forgotten_can_be_begun_otherwise(tmp_path: Path) -> None:
    start(tmp_path / "out")
    forget(Job(tmp_path / "out", Options()))
    assert not (tmp_path / "out").exists()
    assert start(tmp_path / "out", seed=5)


def test_only_one_at_a_time(tmp_path: Path) -> None:
    with locked(Job(tmp_path, Options())), pytest.raises(UserError, match="another process is"):
        start(tmp_path)
    assert start(tmp_path)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"--out: cannot write to .*file/out: Not a directory"):
        start(tmp_path / "file/out")


def test_what_lies_beside_must_stay_the_same(tmp_path: Path) -> None:
    job = Job(tmp_path, Options())
    with locked(job):
        put_beside(job, "classes.json", "[]")
        put_beside(job, "classes.json", b"[]")
        with pytest.raises(UserError, match=r"was begun with another classes\.json"):
            put_beside(job, "classes.json", "[1]")
        publish(job)
    assert (tmp_path / "classes.json").read_text() == "[]"


def test_no_survey_is_left_without_its_spill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(tmp_path, Options())
    survey = job.state / "lot-000003.npz"
    unlink = Path.unlink

    def watched(path: Path) -> None:
        assert path == survey or not survey.exists()
        unlink(path)

    with locked(job):
        for path in (job.spill(3), survey):
            path.write_bytes(b"x")
        monkeypatch.setattr(Path, "unlink", watched)
        tidy(job)
    assert not list(job.state.glob("lot-*"))


def test_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    job = Job(tmp_path, Options())
    with locked(job):
        with (
            pytest.raises(ValueError, match="negative count"),
            writing(job, tmp_path / "a") as path,
        ):
            path.write_bytes(bytes(-path.write_bytes(b"half")))
        with writing(job, tmp_path / "nothing"):
            pass
        assert not [path for path in tmp_path.rglob("*") if path.name[0] in "an"]
        with writing(job, tmp_path / "a") as path:
            path.write_bytes(b"whole")
            assert not (tmp_path / "a").exists()
    assert (tmp_path / "a").read_bytes() == b"whole"
