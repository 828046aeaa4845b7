"""Which checkpoints of a run stay."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from launching import rows
from small_runs import SmallRuns
from tiny import write_task

from selfdistill.engine.saving import Saver
from selfdistill.errors import UserError

EACH = ["optim.warmup_steps=0", "checkpoint.every=1", "checkpoint.keep=1"]


def kept(run: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in (run / "checkpoints").glob("step-*"))


def test_the_best_of_a_run(runs: SmallRuns, tmp_path: Path) -> None:
    tasks = [
        f"eval.tasks.{name}={json.dumps(write_task(tmp_path / name, 'image'))}"
        for name in ("light", "shade")
    ]
    words = [*EACH, *tasks, "train.steps=4", "eval.every=1", "checkpoint.best=knn"]
    assert runs.pretrain("image", tmp_path / "run", *words) == 0
    means = {
        row["step"]: (row["eval/light/knn"] + row["eval/shade/knn"]) / 2
        for row in rows(tmp_path / "run")
        if "eval/light/knn" in row
    }
    best = json.loads((tmp_path / "run" / "checkpoints" / "best.json").read_text())
    assert [*means] == [1, 2, 3, 4]
    wanted = max(means, key=lambda step: means[step])
    assert best == {"step": wanted, "value": means[wanted], "by": "knn"}
    assert kept(tmp_path / "run") == sorted({best["step"], 4})


@pytest.mark.parametrize("best", ["knn", "explained_variance", "-explained_variance"])
def test_a_rating_that_a_kill_came_before(
    best: str, runs: SmallRuns, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = [*EACH, "train.steps=6", "log.every=1", f"checkpoint.best={best}"]
    if best == "knn":
        task = json.dumps(write_task(tmp_path / "task", "image"))
        words += [f"eval.tasks.light={task}", "eval.every=1"]
    assert runs.pretrain("image", tmp_path / "whole", *words) == 0
    wanted = json.loads((tmp_path / "whole" / "checkpoints" / "best.json").read_text())

    def killed(self: Saver, step: int, values: Mapping[str, float]) -> None:
        if step == wanted["step"] and any(key.endswith(best.removeprefix("-")) for key in values):
            assert self.checkpointer is not None
            self.checkpointer.wait()
            raise KeyboardInterrupt
        rate(self, step, values)

    rate = Saver.rate
    with monkeypatch.context() as patch:
        patch.setattr(Saver, "rate", killed)
        with pytest.raises(KeyboardInterrupt):
            runs.pretrain("image", tmp_path / "run", *words)
    assert runs.pretrain("image", tmp_path / "run", *words) == 0
    found = json.loads((tmp_path / "run" / "checkpoints" / "best.json").read_text())
    assert found == wanted
    assert kept(tmp_path / "run") == kept(tmp_path / "whole")


def test_every_so_many_of_a_run(runs: SmallRuns, tmp_path: Path) -> None:
    words = [*EACH, "train.steps=5", "checkpoint.keep_every=2"]
    assert runs.pretrain("text", tmp_path, *words) == 0
    assert kept(tmp_path) == [2, 4, 5]
    assert not (tmp_path / "checkpoints" / "best.json").exists()


@pytest.mark.parametrize("every", [0, 5])
def test_the_best_needs_evaluations_that_have_a_checkpoint(runs: SmallRuns, every: int) -> None:
    words = ["checkpoint.every=2", "checkpoint.best=linear"]
    with pytest.raises(UserError, match=rf"checkpoint\.best: linear needs .* eval\.every {every} "):
        runs.config("image", *words, f"eval.every={every}")
    words += ["eval.every=4", "eval.tasks={a: {train: [a.tar], test: [b.tar]}}"]
    assert runs.config("image", *words).checkpoint.best == "linear"


@pytest.mark.parametrize("best", ["explained_variance", "-explained_variance"])
def test_the_best_by_a_figure_of_the_log(best: str, runs: SmallRuns, tmp_path: Path) -> None:
    words = [*EACH, "train.steps=6", "log.every=1", f"checkpoint.best={best}"]
    assert runs.pretrain("image", tmp_path, *words) == 0
    values = {row["step"]: row["explained_variance"] for row in rows(tmp_path)}
    wanted = (min if best.startswith("-") else max)(values, key=lambda step: values[step])
    assert kept(tmp_path) == sorted({wanted, 6})
    found = json.loads((tmp_path / "checkpoints" / "best.json").read_text())
    assert found["step"] == wanted
    assert abs(found["value"]) == abs(values[wanted])


def test_a_figure_needs_lines_that_have_a_checkpoint(runs: SmallRuns) -> None:
    words = ["checkpoint.best=-loss", "checkpoint.every=4", "log.every=3"]
    with pytest.raises(UserError, match=r"checkpoint\.best: -loss needs a line .* log\.every 3"):
        runs.config("image", *words)


def test_another_word_for_the_best_is_refused(runs: SmallRuns) -> None:
    with pytest.raises(UserError, match=r"checkpoint\.best: lost is none of linear, .*, loss, "):
        runs.config("image", "checkpoint.best=lost")
