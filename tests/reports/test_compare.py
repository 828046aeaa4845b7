import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from selfdistill.cli import main
from selfdistill.errors import UserError
from selfdistill.plots import Curve, Panel
from selfdistill.reports import compare as module
from selfdistill.reports.compare import Reached, compare, reached
from selfdistill.run_folder.scores import read_run

MakeRun = Callable[..., Path]


def config_of(path: Path, changes: Mapping[str, Any]) -> dict[str, Any]:
    config = {
        "modality": "image",
        "run_dir": str(path),
        "input": {"tokenizer": f"{path}/tokenizer.model"},
        "seed": 0,
        "resume": "auto",
        "objective": {"strategy": "full"},
        "optim": {"lr": 0.1},
    }
    return {**config, **changes}


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Makes the folder of a run: what a run writes, as far as comparing reads it."""

    def make(
        name: str,
        minutes: Sequence[float],
        accuracy: Sequence[float],
        keys: Sequence[str] = ("eval/letter",),
        result: Mapping[str, Any] | None = None,
        **changes: Any,
    ) -> Path:
        path = tmp_path / name
        path.mkdir(parents=True)
        (path / "config.yaml").write_text(yaml.safe_dump(config_of(path, changes)))
        rows: list[dict[str, Any]] = []
        for number, (spent, found) in enumerate(zip(minutes, accuracy, strict=True), start=1):
            time = {"step": 10 * number, "train_seconds": 60 * spent}
            rows.append({**time, "loss": 1.0, "samples_per_second": 7.0})
            probes = {"linear": found, "few_shot": found / 2, "knn": found / 4}
            scores = {f"{key}/{probe}": value for key in keys for probe, value in probes.items()}
            rows.append({**time, **scores})
        (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        if result is not None:
            (path / "eval.json").write_text(json.dumps(result))
        return path

    return make


@pytest.fixture
def panels(monkeypatch: pytest.MonkeyPatch) -> list[Panel]:
    """The panels that were drawn last."""
    drawn: list[Panel] = []

    def note(given: Sequence[Panel], probe: str, file_format: str) -> bytes:
        drawn[:] = given
        return b"picture"

    monkeypatch.setattr(module, "draw", note)
    return drawn


def curve(minutes: Sequence[float], accuracy: Sequence[float]) -> Curve:
    return Curve("a", minutes, accuracy, accuracy, accuracy)


def test_a_run_is_read(make_run: MakeRun) -> None:
    levels = {"raw": 0.4, "untrained": None, "trained": 0.3}
    result = {"image": {"raw_input": "pixels", "tasks": {"letter": {"linear": levels}}}}
    path = make_run("a", [1, 2], [0.1, 0.3], ["eval/letter", "eval/a/b"], result)
    with open(path / "metrics.jsonl", "a") as file:
        file.write('{"step": 30, "eval/letter/lin')
    run = read_run(path, "linear")
    scores = {10: (60, 0.1), 20: (120, 0.3)}
    assert run.scores == {("image", "letter"): scores, ("image", "a/b"): scores}
    assert run.levels[("image", "letter")] == {"raw input (pixels)": 0.4}
    assert run.config == {
        "modality": "image",
        "input.tokenizer": "tokenizer.model",
        "objective.strategy": "full",
        "optim.lr": 0.1,
    }
    assert read_run(path, "few_shot").scores["image", "letter"][20] == (120, 0.15)
    # paths in the folder are written without what a shell's completion adds to its name
    slash = make_run("b", [1], [0.1], run_dir=f"{path.parent / 'b'}/")
    assert read_run(slash, "linear").config == run.config


def test_a_joint_run_is_in_each_panel(
    make_run: MakeRun, panels: list[Panel], tmp_path: Path
) -> None:
    joint = make_run("j", [2], [0.5], ["audio/eval/word", "image/eval/letter", "image/eval/font"])
    image = make_run("i", [1], [0.4], optim={"lr": 0.2})
    compare([image, joint], tmp_path / "c.svg")
    assert [(p.title, [c.name for c in p.curves]) for p in panels] == [
        ("image, letter", ["i", "j"]),
        ("audio, word", ["j"]),
    ]
    compare([joint], tmp_path / "c.svg", "font")
    assert [panel.title for panel in panels] == ["image, font"]


def test_a_modality_from_outside_is_the_same_alone_and_joint(
    make_run: MakeRun, panels: list[Panel], tmp_path: Path
) -> None:
    result = {"my.video": {"tasks": {"clip": {"linear": {"raw": 0.5}}}}}
    alone = make_run("a", [1], [0.4], ["eval/clip"], result, modality="my.video")
    joint = make_run("j", [2], [0.5], ["video/eval/clip"], modality="")
    compare([alone, joint], tmp_path / "c.svg")
    assert [p.title for p in panels] == ["video, clip"]
    assert panels[0].levels == {"raw input": 0.5}


def test_repeats_of_a_joint_run_are_one_curve(
    make_run: MakeRun, panels: list[Panel], tmp_path: Path
) -> None:
    paths = [
        make_run(n, [1], [0.4], ["a/eval/t"], modalities={"a": {"seed": n, "run_dir": n}})
        for n in ("x", "y")
    ]
    compare(paths, tmp_path / "c.svg")
    assert len(panels[0].curves) == 1


def test_names_that_are_no_text(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("a", [1, 2], [0.1, 0.2]).rename(tmp_path / os.fsdecode(b"l\xe4uf"))
    assert "\nl\\xe4uf " in compare([run], tmp_path / "c.svg")


def test_a_folder_counts_once(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("a", [1], [0.4])
    with pytest.raises(UserError, match="a: is named twice; name each run once"):
        compare([run, tmp_path / "b" / ".." / "a"], tmp_path / "c.svg")


def test_repeats_are_one_curve(make_run: MakeRun, panels: list[Panel], tmp_path: Path) -> None:
    raw = [{"image": {"tasks": {"letter": {"linear": {"raw": r}}}}} for r in (0.4, 0.5, 0.6)]
    paths = [
        make_run("f-0", [1, 2], [0.1, 0.2], result=raw[0], seed=0, resume="never"),
        make_run("v", [1, 2], [0.7, 0.8], result=raw[1], objective={"strategy": "visible"}),
        make_run("f-1", [3, 4], [0.3, 0.6], result=raw[2], seed=1),
    ]
    table = compare(paths, tmp_path / "c.svg")
    full, visible = panels[0].curves
    assert (full.name, visible.name) == ("strategy=full (2 runs)", "strategy=visible")
    assert (full.at, full.values) == ([2, 3], [pytest.approx(0.2), pytest.approx(0.4)])
    assert (full.low, full.high) == ([0.1, 0.2], [0.3, 0.6])
    assert (visible.has_band, full.has_band) == (False, True)
    assert panels[0].levels == {"raw input, mean of 40.0 to 60.0 %": pytest.approx(0.5)}
    assert "40.0 (20.0 to 60.0)" in table


def test_repeats_are_compared_as_far_as_all_have_come(
    make_run: MakeRun, panels: list[Panel], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths = [make_run("a-0", [1, 2], [0.1, 0.2]), make_run("a-1", [3], [0.3], seed=1)]
    compare(paths, tmp_path / "c.svg")
    assert (panels[0].curves[0].name, panels[0].curves[0].at) == ("a (2 runs)", [2])
    assert "not all runs have come to step 20; drawn to 10" in caplog.text


@pytest.mark.parametrize(
    ("names", "changes", "expected"),
    [
        (["x", "y"], [{}, {"optim": {"lr": 1.0}}], ["x", "y"]),
        (["p/x", "q/x"], [{}, {"optim": {"lr": 1.0}}], ["p/x", "q/x"]),
        (
            ["x", "y", "z"],
            [{}, {"seed": 1}, {"optim": {"lr": 1.0}, "teacher": {"lr": [1, 2]}}],
            [
                "optim.lr=0.1, teacher.lr=unset (2 runs)",
                "optim.lr=1.0, teacher.lr=[1, 2]",
            ],
        ),
        (
            ["x-0", "x-1", "z"],
            [{}, {"seed": 1}, {"optim": {"lr": 1.0}, "b": "long " * 9}],
            ["x (2 runs)", "z"],
        ),
        (["run-7", "other"], [{}, {"seed": 1}], ["run-7 (2 runs)"]),
    ],
)
def test_names(
    names: list[str],
    changes: list[dict[str, Any]],
    expected: list[str],
    make_run: MakeRun,
    panels: list[Panel],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, change in zip(names, changes, strict=True):
        make_run(name, [1], [0.5], **change)
    compare([Path(name) for name in names], Path("c.svg"))
    assert [curve.name for curve in panels[0].curves] == expected


@pytest.mark.parametrize(
    ("accuracy", "expected"),
    [
        (0.1875, Reached(1.5, False)),
        (0.25, Reached(2.0, False)),
        (0.3125, Reached(3.5, False)),
        (0.125, Reached(1.0, True)),
        (0.1, Reached(1.0, True)),
        (0.51, None),
    ],
)
def test_when_an_accuracy_was_reached(accuracy: float, expected: Reached | None) -> None:
    found = reached(curve([1, 2, 3, 4], [0.125, 0.25, 0.125, 0.5]), accuracy)
    assert found == expected


def test_the_only_evaluation_is_no_bound_of_its_own_accuracy() -> None:
    assert reached(curve([3], [0.4]), 0.4) == Reached(3, False)
    assert reached(curve([3], [0.4]), 0.3) == Reached(3, True)


def test_the_table(make_run: MakeRun, tmp_path: Path) -> None:
    lrs = iter(range(9))
    paths = [
        make_run(name, minutes, accuracy, optim={"lr": next(lrs)})
        for name, minutes, accuracy in (
            ("first", [10, 20], [0.1, 0.3]),
            ("quick", [4, 6], [0.2, 0.4]),
            ("at once", [5, 6], [0.4, 0.5]),
            ("never", [40], [0.2]),
        )
    ]
    assert compare(paths, tmp_path / "c.svg").splitlines() == [
        "image, letter: linear probe, accuracy in percent",
        "         accuracy  minutes  30.0 % after  speed-up",
        "first        30.0     20.0      20.0 min     1.00x",
        "quick        40.0     6.00      5.00 min     4.00x",
        "at once      50.0     6.00   <= 5.00 min  >= 4.00x",
        "never        20.0     40.0         never         -",
    ]


def test_nothing_is_said_of_two_bounds(make_run: MakeRun, tmp_path: Path) -> None:
    paths = [make_run("a", [4, 6], [0.3, 0.2]), make_run("b", [1], [0.5], optim={"lr": 1})]
    table = compare(paths, tmp_path / "c.svg").splitlines()
    assert table[2].endswith("<= 4.00 min         -")
    assert table[3].endswith("<= 1.00 min         -")


def test_before_the_first_step_there_is_no_ratio(make_run: MakeRun, tmp_path: Path) -> None:
    paths = [make_run("a", [4], [0.3]), make_run("b", [0], [0.5], optim={"lr": 1})]
    assert compare(paths, tmp_path / "c.svg").endswith("<= 0.00 min         -")


def test_the_picture(make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    levels = {"raw": 0.4, "untrained": 0.1}
    result = {"image": {"raw_input": "pixels", "tasks": {"letter": {"linear": levels}}}}
    runs = [
        str(make_run("a", [1, 2], [0.1, 0.3], result=result)),
        str(make_run("b", [1, 2], [0.2, 0.3], seed=1)),
        str(make_run("c", [1, 2], [0.3, 0.4], optim={"lr": 1})),
        *(str(make_run(n, [1], [0.1], [f"{n}/eval/word"])) for n in (r"$\x$", "text", "video")),
    ]
    out = tmp_path / "c.svg"
    assert main(["compare", *runs, "--out", str(out)]) == 0
    assert f"written to {out}" in capsys.readouterr().out
    first = out.read_bytes()
    for text in (
        "image, letter",
        "video, word",
        "raw input (pixels)",
        "untrained encoder",
        "worst to best run",
    ):
        assert f"<!-- {text} -->".encode() in first
    assert b"<!-- lr=0.1 (2 runs) -->" in first
    assert main(["compare", *runs, "--out", str(out)]) == 0
    assert out.read_bytes() == first
    assert main(["compare", *runs, "--out", str(tmp_path / "c.png"), "--probe", "few_shot"]) == 0
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


def test_mistakes_are_one_line(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = make_run("good", [1], [0.5], ["eval/letter", "eval/font"])
    other = make_run("other", [1], [0.5], ["eval/digit"])
    unevaluated = make_run("unevaluated", [1], [0.5], [])
    untimed = make_run("untimed", [1], [0.5])
    metrics = untimed / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace("train_seconds", "seconds"))
    bare = make_run("bare", [1], [0.5])
    (bare / "config.yaml").unlink()
    out = str(tmp_path / "c.svg")
    for words, expected in (
        ([good, "--out", "c.pdf"], "--out: 'c.pdf' must end in .svg or .png"),
        ([good, "--out", tmp_path / "no" / "c.svg"], "--out: there is no folder"),
        ([tmp_path, "--out", out], f"{tmp_path}: cannot read metrics.jsonl (No such file"),
        ([bare, "--out", out], f"{bare}: cannot read config.yaml"),
        ([unevaluated, "--out", out], f"{unevaluated}: metrics.jsonl holds no evaluation"),
        ([untimed, "--out", out], f"{untimed}: metrics.jsonl has no train_seconds at step 10"),
        ([good, other, "--out", out], f"{other} has no task 'letter'; it has digit"),
        ([good, other, "--out", out, "--task", "font"], f"{other} has no task 'font'"),
        ([good, "--out", out, "--task", "x"], "no task 'x'; it has letter, font"),
    ):
        assert main(["compare", *map(str, words)]) == 2
        error = capsys.readouterr().err
        assert expected in error
        assert error.count("\n") == 1
    assert not Path(out).exists()


def test_repeats_need_a_step_in_common(make_run: MakeRun, tmp_path: Path) -> None:
    paths = [make_run("a", [1], [0.5]), make_run("b", [1], [0.5], seed=1)]
    metrics = paths[1] / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"step": 10', '"step": 15'))
    with pytest.raises(module.UserError, match="no step was evaluated in all"):
        compare(paths, tmp_path / "c.svg")


def test_other_commands_do_not_pay_for_it() -> None:
    code = "import sys, selfdistill.cli as c; c._parser(); print({*sys.modules} & {'matplotlib'})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
