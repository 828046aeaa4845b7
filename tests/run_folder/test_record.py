import json
import os
import time
from math import isnan
from pathlib import Path

import pytest
from run_folders import config, evaluation, row, write_run

from selfdistill.errors import UserError
from selfdistill.run_folder.files import MetricsFile, checkpoints
from selfdistill.run_folder.record import Record, read_record


def append(path: Path, text: str) -> None:
    with open(path / "metrics.jsonl", "a") as file:
        file.write(text)


def steps(metrics: MetricsFile) -> list[float]:
    return [line["step"] for line in metrics.read()]


def test_only_complete_lines_count(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r", [row(10)])
    metrics = MetricsFile(run)
    assert steps(metrics) == [10]
    text = json.dumps(row(20)) + "\n"
    append(run, text[:30])
    assert steps(metrics) == [10]
    append(run, text[30:])
    assert steps(metrics) == [10, 20]


def test_what_a_crash_left_is_passed_over(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r", [row(10)])
    append(run, '{"step": 20, "lo\n[1]\n"x"\n{"loss": 1}\n{"step": "3"}\n{"step": true}\n\n')
    append(run, json.dumps({"step": 30, "loss": None, "note": "x", "flag": True}) + "\n")
    found = MetricsFile(run).read()
    assert [line["step"] for line in found] == [10, 30]
    assert isnan(found[1]["loss"])
    assert set(found[1]) == {"step", "loss"}


def test_a_resumed_run_replaces_what_came_after(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r", [row(10), row(20), row(30)])
    metrics = MetricsFile(run)
    assert steps(metrics) == [10, 20, 30]
    (run / "new").write_text(json.dumps(row(10)) + "\n")
    os.replace(run / "new", run / "metrics.jsonl")
    assert steps(metrics) == [10]
    append(run, json.dumps(row(20, loss=7)) + "\n")
    assert metrics.read()[-1]["loss"] == 7


def test_another_file_under_the_name_is_read_from_its_start(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r", [row(10), row(20)])
    metrics = MetricsFile(run)
    metrics.read()
    lines = [json.dumps(row(step, loss=5.0)) + "\n" for step in (10, 20, 30, 40)]
    (run / "new").write_text("".join(lines))
    os.replace(run / "new", run / "metrics.jsonl")
    assert [line["loss"] for line in metrics.read()] == [5.0] * 4


def test_a_file_that_was_cut_is_read_anew(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r", [row(10), row(20)])
    metrics = MetricsFile(run)
    metrics.read()
    with open(run / "metrics.jsonl", "r+") as file:
        file.truncate(len(json.dumps(row(10))) + 1)
    assert steps(metrics) == [10]


def test_a_step_that_is_written_again_drops_the_first_and_the_later(tmp_path: Path) -> None:
    lines = [row(10), evaluation(10, 0.1), row(20), row(30), row(20, loss=9), evaluation(20, 0.2)]
    found = MetricsFile(write_run(tmp_path / "r", lines)).read()
    assert [(line["step"], line.get("loss")) for line in found] == [
        (10, row(10)["loss"]),
        (10, None),
        (20, 9),
        (20, None),
    ]


def test_a_file_may_come_and_go(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r", [row(10)])
    metrics = MetricsFile(run)
    assert steps(metrics) == [10]
    (run / "metrics.jsonl").unlink()
    assert (steps(metrics), metrics.exists) == ([], False)
    append(run, json.dumps(row(10)) + "\n")
    assert (steps(metrics), metrics.exists) == ([10], True)


def test_figures_of_one_modality(tmp_path: Path) -> None:
    lines = [row(10), evaluation(10, 0.2), {"step": 20, "loss": 1.0, "grad_norm/blocks": 2.0}]
    record = read_record(write_run(tmp_path / "r", lines))
    assert list(record.logs()) == ["image"]
    log = record.logs()["image"]
    assert log.steps == [10, 20]
    assert log.values["loss"] == [row(10)["loss"], 1.0]
    assert log.values["grad_norm/blocks"][1] == 2.0
    assert isnan(log.values["target_std"][1])
    assert not {"step", "train_seconds", "eval/letter/linear"} & set(log.values)
    assert record.scores("image")["letter", "linear"] == {10: 0.2}


def test_a_long_log_is_read_in_no_time(tmp_path: Path) -> None:
    rows = [{"step": float(step), "loss": 1.0, "lr": 0.1} for step in range(50_000)]
    began = time.process_time()
    log = Record(tmp_path, config(), {}, rows, {}).logs()["image"]
    assert time.process_time() - began < 2  # a list of all lines for each of them took far more
    assert log.values["loss"] == [1.0] * len(rows)


def test_figures_of_several_modalities(tmp_path: Path) -> None:
    settings = config(modalities={"my.audio": {"guard": {"patience": 7}}, "text": {}})
    del settings["modality"]
    line = {"step": 10, "audio/loss": 1.0, "text/loss": 2.0, "loss": 3.0, "lr": 0.1}
    scores = {"step": 10, "audio/eval/word/linear": 0.5}
    record = read_record(write_run(tmp_path / "r", [line, scores], settings=settings))
    found = {name: dict(log.values) for name, log in record.logs().items()}
    assert found == {
        "audio": {"loss": [1.0]},
        "text": {"loss": [2.0]},
        "": {"loss": [3.0], "lr": [0.1]},
    }
    assert record.scores("audio") == {("word", "linear"): {10: 0.5}}
    assert record.parts()["audio"]["guard"] == {"patience": 7}
    assert record.parts()["text"]["train"] == settings["train"]


def test_an_older_evaluation_has_no_tasks(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r", found={"my.image": {"linear": {"trained": 0.5}}})
    assert read_record(run).tasks("image") == {"probes": {"linear": {"trained": 0.5}}}


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("config.yaml", "a: [1", "config.yaml is damaged"),
        ("config.yaml", "- 1", "config.yaml is damaged: it has no keys"),
        ("config.yaml", "!!python/object/apply:os.getcwd []", "config.yaml is damaged"),
        ("config.yaml", None, "cannot read config.yaml"),
        ("eval.json", '{"image": {', "eval.json is damaged"),
        ("eval.json", "[]", "eval.json is damaged"),
        ("environment.json", "", "environment.json is damaged"),
        ("metrics.jsonl", None, "nothing was logged yet"),
    ],
)
def test_damaged_files_are_named(
    name: str, content: str | None, expected: str, tmp_path: Path
) -> None:
    run = write_run(tmp_path / "r")
    if content is None:
        (run / name).unlink()
    else:
        (run / name).write_text(content)
    with pytest.raises(UserError, match=expected) as found:
        read_record(run)
    assert str(run) in str(found.value)
    assert "\n" not in str(found.value)


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for name, expected in (
        ("empty", "give the folder of a run"),
        ("file", "is no folder"),
        ("nothing", "there is no such folder"),
    ):
        with pytest.raises(UserError, match=expected):
            read_record(tmp_path / name)


def test_complete_checkpoints_only(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r")
    for name in ("step-00000100", "step-00000020", "step-00000300", ".writing-step-00000400"):
        (run / "checkpoints" / name).mkdir(parents=True)
        if "300" not in name:
            (run / "checkpoints" / name / "manifest.json").write_text("{}")
    assert [saved.step for saved in checkpoints(run)] == [20, 100]
    assert checkpoints(tmp_path) == []
