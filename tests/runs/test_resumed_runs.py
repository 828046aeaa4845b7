"""Whatever ends a run, running it again gives the weights of a run that nothing interrupted."""

import json
import os
import random
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from launching import Ended, Running, checkpoint, rows, weights
from modality_cases import MODALITIES
from tiny import JOINT, STEPS, samples, write_shard, write_task

from selfdistill.engine.saving import Saver
from selfdistill.engine.signals import SAME_SIGNAL_SECONDS

KILLS = int(os.environ.get("SELFDISTILL_KILLS", "1"))
SEED = int(os.environ.get("SELFDISTILL_KILL_SEED", "0"))
LAST_KILL = 45  # later ones lose the race against the end of the run
CLOCKS = {"data_wait", "samples_per_second", "train_seconds"}

Config = Callable[..., str]
Start = Callable[..., Running]
Pretrain = Callable[..., Ended]
Reference = Callable[[str], Path]


def measured(run: Path) -> list[dict[str, Any]]:
    """Its metrics without what a clock says."""
    return [{k: v for k, v in row.items() if k not in CLOCKS} for row in rows(run)]


def reaches(running: Running, run: Path, step: int) -> bool:
    """Wait until that step is logged; False: the run ended first."""
    while running.process.is_alive():
        found = rows(run)
        if found and found[-1]["step"] >= step:
            return True
        time.sleep(0.002)
    return False


def interrupt(start: Start, words: list[str], run: Path, step: int, number: int) -> Running:
    """A fresh run that gets a signal after that step."""
    for _ in range(5):  # on a busy machine the signal may come after the end
        running = start(*words)
        if reaches(running, run, step):
            running.send(number)
            if running.wait().code:
                return running
        shutil.rmtree(run)
    raise AssertionError(running.printed("stderr"))


def assert_same(run: Path, reference: Path) -> None:
    assert weights(run, STEPS) == weights(reference, STEPS)
    assert [row["step"] for row in rows(run)] == [*range(1, STEPS + 1)]
    assert measured(run) == measured(reference)


@pytest.mark.parametrize("kill", range(KILLS))
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("modality", [*MODALITIES, JOINT])
def test_killed(
    modality: str,
    workers: int,
    kill: int,
    config: Config,
    start: Start,
    pretrain: Pretrain,
    reference: Reference,
    tmp_path: Path,
) -> None:
    seed = f"{SEED} {modality} {workers} {kill}"
    step = random.Random(seed).randint(1, LAST_KILL)
    print(f"seed '{seed}' kills after step {step}")
    words = [config(modality), f"data.workers={workers}"]
    killed = interrupt(start, words, tmp_path / "run", step, signal.SIGKILL)
    assert killed.process.exitcode == -signal.SIGKILL
    # that of step 7 is written meanwhile, and that of step 14 waits for it
    saved = any((tmp_path / "run").glob("checkpoints/step-*"))
    assert saved or step < 15
    ended = pretrain(*words)
    assert ended.code == 0, ended.stderr
    assert ("resumed from" in ended.stderr) == saved
    assert_same(tmp_path / "run", reference(modality))
    assert killed.left_behind() == []


def test_killed_before_the_first_checkpoint(
    config: Config, start: Start, pretrain: Pretrain, reference: Reference, tmp_path: Path
) -> None:
    words = [config("text"), "checkpoint.every=50", "data.workers=0"]
    interrupt(start, words, tmp_path / "run", 3, signal.SIGKILL)
    assert not list((tmp_path / "run").glob("checkpoints/step-*"))
    refused = pretrain(*words, "--resume")
    assert refused.code == 2
    assert "--resume" in refused.stderr
    assert "no complete checkpoint" in refused.stderr
    assert pretrain(*words).code == 0
    assert_same(tmp_path / "run", reference("text"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop(
    number: signal.Signals,
    config: Config,
    start: Start,
    pretrain: Pretrain,
    reference: Reference,
    tmp_path: Path,
) -> None:
    words, run = [config("audio"), "data.workers=2", "checkpoint.every=1000"], tmp_path / "run"
    stopped = interrupt(start, words, run, 10, number)
    ended = stopped.wait()
    assert ended.code == 75
    step = rows(run)[-1]["step"]
    last = ended.stderr.splitlines()[-1]
    assert f"stopped by signal {number.name} after step {step}" in last
    assert "run the same command to go on" in last
    assert "Traceback" not in ended.stderr
    assert [path.name for path in (run / "checkpoints").iterdir()] == [f"step-{step:08d}"]
    assert str(checkpoint(run, step)) in last
    assert stopped.left_behind() == []
    assert f"resumed from {checkpoint(run, step)}" in pretrain(*words, "--resume").stderr
    assert_same(run, reference("audio"))


def slow_to_evaluate() -> None:
    from selfdistill.probes.evaluate import Evaluator

    evaluate = Evaluator.evaluate

    def slowly(*parts: Any) -> Any:
        print("evaluating", flush=True)
        time.sleep(30)
        return evaluate(*parts)

    Evaluator.evaluate = slowly


@pytest.mark.parametrize("step", [7, STEPS])
def test_asked_to_stop_during_an_evaluation(
    step: int, config: Config, start: Start, pretrain: Pretrain, tmp_path: Path
) -> None:
    """The last one counts as well, when all training is done."""
    task = f"eval.tasks.light={json.dumps(write_task(tmp_path / 'task', 'image'))}"
    words = ["data.workers=2", "checkpoint.every=1000", task, f"eval.every={step}"]
    running = start(config(), *words, setup=slow_to_evaluate)
    while "evaluating" not in running.printed("stdout"):
        assert running.process.is_alive(), running.printed("stderr")
        time.sleep(0.01)
    began = time.monotonic()
    running.send(signal.SIGTERM)
    ended = running.wait()
    assert time.monotonic() - began < 20
    assert ended.code == 75, ended.stderr
    assert f"stopped by signal SIGTERM after step {step}" in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr
    assert running.left_behind() == []
    run = tmp_path / "run"
    assert [path.name for path in (run / "checkpoints").iterdir()] == [f"step-{step:08d}"]
    assert pretrain(config(), *words).code == 0
    whole = config("image", "whole")
    assert pretrain(whole, *words).code == 0
    assert weights(run, STEPS) == weights(tmp_path / "whole", STEPS)
    evaluated = [
        [(row["step"], row["eval/light/knn"]) for row in rows(path) if "eval/light/knn" in row]
        for path in (run, tmp_path / "whole")
    ]
    assert evaluated[0] == evaluated[1]
    assert evaluated[0][0][0] == step


def slow_to_save() -> None:
    from selfdistill.engine import checkpoint

    write = checkpoint.write_checkpoint

    def slowly(folder: Path, content: Any) -> None:
        write(folder, content)
        if content.step > 7:
            print("saving", flush=True)
            time.sleep(30)

    checkpoint.write_checkpoint = slowly


def test_second_signal_ends_at_once(
    config: Config, start: Start, pretrain: Pretrain, reference: Reference, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    running = start(config("image"), "data.workers=2", setup=slow_to_save)
    assert reaches(running, run, 8)
    running.send(signal.SIGTERM)
    while "saving" not in running.printed("stdout"):
        assert running.process.is_alive(), running.printed("stderr")
        time.sleep(0.01)
    time.sleep(2 * SAME_SIGNAL_SECONDS)  # no launcher repeats the first one as late
    began = time.monotonic()
    running.send(signal.SIGTERM)
    assert running.wait().code == -signal.SIGTERM
    assert time.monotonic() - began < 20  # saving takes 30
    assert running.left_behind() == []
    assert [p.name for p in (run / "checkpoints").glob("step-*")] == ["step-00000007"]
    ended = pretrain(config("image"))
    assert f"resumed from {checkpoint(run, 7)}" in ended.stderr
    assert "unfinished checkpoint" in ended.stderr
    assert_same(run, reference("image"))


@pytest.fixture
def used(reference: Reference, tmp_path: Path) -> Path:
    """The folder of a finished image run, which a test may change."""
    return Path(shutil.copytree(reference("image"), tmp_path / "run"))


def test_finished_run_trains_nothing(config: Config, pretrain: Pretrain, used: Path) -> None:
    before = weights(used, STEPS), (used / "metrics.jsonl").read_bytes()
    files = sorted(used.rglob("*"))
    # killed while it removed the oldest checkpoint
    removing = used / "checkpoints" / ".removing-step-00000042"
    removing.mkdir()
    (removing / "state.json").touch()
    ended = pretrain(config())
    assert ended.code == 0
    assert f"is finished after {STEPS} steps" in ended.stderr
    assert "step 60/" not in ended.stderr
    assert (weights(used, STEPS), (used / "metrics.jsonl").read_bytes()) == before
    assert sorted(used.rglob("*")) == files


def _tell_open_checkpoints() -> None:
    """Have a run say at its end which files of checkpoints it still holds."""
    finish = Saver.finish

    def told(self: Saver) -> None:
        finish(self)
        maps = Path("/proc/self/maps").read_text().splitlines()
        print("held:", [line for line in maps if "/checkpoints/" in line])

    Saver.finish = told  # type: ignore[method-assign]


def test_what_it_went_on_from_is_let_go(config: Config, pretrain: Pretrain, used: Path) -> None:
    """Or its space on the disk would be taken until the end of the run."""
    ended = pretrain(config(), f"train.steps={STEPS + 2}", setup=_tell_open_checkpoints)
    assert ended.code == 0, ended.stderr
    assert "resumed from" in ended.stderr
    assert "held: []" in ended.stdout


def test_finished_run_prints_its_table_again(
    config: Config, pretrain: Pretrain, tmp_path: Path
) -> None:
    task = json.dumps(write_task(tmp_path, "image"))
    words = [config(), "train.steps=9", f"eval.tasks.shade={task}"]
    first = pretrain(*words)
    assert first.code == 0, first.stderr
    assert "linear" in first.stdout
    metrics = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    again = pretrain(*words)
    assert again.stdout == first.stdout
    assert "evaluating" not in again.stderr
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == metrics
    # killed after the last checkpoint, before the evaluation
    (tmp_path / "run" / "eval.json").unlink()
    lines = metrics.splitlines(keepends=True)
    (tmp_path / "run" / "metrics.jsonl").write_bytes(b"".join(lines[:-1]))
    late = pretrain(*words)
    assert late.stdout == first.stdout
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == metrics


def test_an_evaluation_is_in_the_log_once(
    config: Config, pretrain: Pretrain, tmp_path: Path
) -> None:
    task, run = json.dumps(write_task(tmp_path, "image")), tmp_path / "run"
    words = [config(), "optim.warmup_steps=2", "train.steps=12", "checkpoint.every=6"]
    words += ["eval.every=3", f"eval.tasks.shade={task}"]
    assert pretrain(*words).code == 0
    whole = measured(run)
    assert [row["step"] for row in whole if "loss" not in row] == [3, 6, 9, 12]
    # killed when a later step than that of the checkpoint had been evaluated
    shutil.rmtree(checkpoint(run, 12))
    assert "resumed from" in pretrain(*words).stderr
    assert measured(run) == whole
    # killed between the file and the line
    lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (run / "metrics.jsonl").write_bytes(b"".join(lines[:-1]))
    assert pretrain(*words).code == 0
    assert measured(run) == whole


OF_TIME = {"data_wait", "samples_per_second", "train_seconds"}


def test_lines_of_the_log_that_a_stop_falls_into(
    config: Config, pretrain: Pretrain, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = [config("text"), "train.steps=12", "log.every=5", "checkpoint.every=4"]
    assert pretrain(*words).code == 0
    whole = rows(run)
    shutil.rmtree(checkpoint(run, 12))
    ended = pretrain(*words)
    assert f"resumed from {checkpoint(run, 8)}" in ended.stderr
    again = rows(run)
    assert [row["step"] for row in again] == [5, 10, 12]
    for row, expected in zip(again, whole, strict=True):
        assert {k: row[k] for k in row.keys() - OF_TIME} == {
            k: expected[k] for k in expected.keys() - OF_TIME
        }


def test_resume_never(config: Config, pretrain: Pretrain, used: Path) -> None:
    ended = pretrain(config(), "resume=never")
    assert ended.code == 2
    assert f"resume: never, but {used} holds step-00000060" in ended.stderr


def test_resume_from_nowhere(config: Config, pretrain: Pretrain, tmp_path: Path) -> None:
    ended = pretrain(config(), f"resume={tmp_path / 'gone'}")
    assert ended.code == 2
    assert f"resume: no checkpoint in '{tmp_path / 'gone'}'" in ended.stderr


def test_resume_from_an_older_checkpoint_of_the_same_run(
    config: Config, pretrain: Pretrain, used: Path
) -> None:
    older = checkpoint(used, 49)
    ended = pretrain(config(), f"resume={older}")
    assert ended.code == 2
    assert f"resume: {older} is older than step-00000060" in ended.stderr
    assert "remove the newer checkpoints" in ended.stderr
    before = weights(used, STEPS)
    for step in (56, 60):
        shutil.rmtree(checkpoint(used, step))
    ended = pretrain(config(), f"resume={older}")
    assert f"resumed from {older}" in ended.stderr
    assert weights(used, STEPS) == before


def test_resume_from_another_run(
    config: Config, start: Start, pretrain: Pretrain, reference: Reference, tmp_path: Path
) -> None:
    source, run = checkpoint(reference("image"), 49), tmp_path / "run"
    words = [config(), f"resume={source}"]
    running = start(*words, "checkpoint.every=1")
    assert reaches(running, run, 51)
    running.send(signal.SIGTERM)
    assert running.wait().code == 75
    assert f"resumed from {source}" in running.printed("stderr")
    ended = pretrain(*words)
    assert f"resumed from {run / 'checkpoints'}" in ended.stderr
    assert weights(run, STEPS) == weights(reference("image"), STEPS)
    assert [row["step"] for row in rows(run)] == [*range(50, STEPS + 1)]


def test_resume_from_another_run_with_its_tokenizer(
    config: Config, here: Pretrain, tmp_path: Path
) -> None:
    """Not with one that is trained once more, whose ids would be of other words."""
    words = ["optim.warmup_steps=1", "log.every=100"]
    other = write_shard(tmp_path / "other.tar", samples("text", 24, 7))
    assert here(config("text", "other"), *words, f"data.train=[{other}]", "train.steps=2").code == 0
    given = f"input.tokenizer={tmp_path / 'other' / 'tokenizer.json'}"
    assert here(config("text", "first"), *words, given, "train.steps=2").code == 0
    ended = here(config("text"), *words, "train.steps=4", f"resume={tmp_path / 'first'}")
    assert ended.code == 0, ended.stderr
    tokenizers = [(tmp_path / run / "tokenizer.json").read_text() for run in ("first", "run")]
    assert tokenizers[0] == tokenizers[1]


def test_resume_from_a_run_that_this_one_did_not_begin_from(
    config: Config, pretrain: Pretrain, used: Path, tmp_path: Path
) -> None:
    words = ["seed=9", "train.steps=1", "optim.warmup_steps=0"]
    assert pretrain(config("image", "other"), *words).code == 0
    ended = pretrain(config(), f"resume={tmp_path / 'other'}")
    assert ended.code == 2
    assert f"resume: {checkpoint(used, STEPS)} is of another run than" in ended.stderr
    assert "(seed: 9 -> 3); choose another run_dir" in ended.stderr


def test_weights_of_another_shape(config: Config, pretrain: Pretrain, tmp_path: Path) -> None:
    words = [config("text"), "optim.warmup_steps=0", "checkpoint.every=1"]
    assert pretrain(*words, "train.steps=1").code == 0
    before = (tmp_path / "run" / "config.yaml").read_bytes()
    ended = pretrain(*words, "train.steps=2", "input.max_tokens=40")
    assert ended.code == 2
    assert "resumed with a changed value: input.max_tokens: 24 -> 40" in ended.stderr
    shapes = r"the shape of '[\w.]*positions.weight' is \[26, 16\] in .* and \[42, 16\] with this"
    assert re.search(shapes, ended.stderr.splitlines()[-1])
    assert (tmp_path / "run" / "config.yaml").read_bytes() == before


def test_changed_config(config: Config, pretrain: Pretrain, used: Path) -> None:
    refused = pretrain(config(), "model.width=32", "train.steps=61")
    assert refused.code == 2
    assert "model.width: 16 -> 32" in refused.stderr
    assert "another run_dir" in refused.stderr
    allowed = pretrain(config(), "optim.lr=5e-4", "train.steps=61", "data.workers=0")
    assert allowed.code == 0
    assert "optim.lr: 0.002 -> 0.0005" in allowed.stderr
    assert "train.steps: 60 -> 61" in allowed.stderr
    assert [row["step"] for row in rows(used)] == [*range(1, 62)]
    assert 0 < rows(used)[-1]["lr"] < 5e-4


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_damaged_newest_checkpoint(
    name: str, config: Config, pretrain: Pretrain, used: Path, reference: Reference
) -> None:
    damaged = checkpoint(used, STEPS) / name
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    ended = pretrain(config())
    assert ended.code == 0
    assert ended.stderr.count(f"{damaged} is damaged") == 1
    assert f"resumed from {checkpoint(used, 56)}" in ended.stderr
    assert_same(used, reference("image"))


def test_all_checkpoints_damaged(config: Config, pretrain: Pretrain, used: Path) -> None:
    for model in used.glob("checkpoints/*/model.safetensors"):
        model.write_bytes(model.read_bytes()[:-1])
    ended = pretrain(config())
    assert ended.code == 2
    assert "all 3 checkpoints are damaged" in ended.stderr


def test_old_metrics_without_a_checkpoint(
    config: Config, pretrain: Pretrain, used: Path, reference: Reference
) -> None:
    shutil.rmtree(used / "checkpoints")
    assert pretrain(config()).code == 0
    assert_same(used, reference("image"))


def test_two_runs_on_one_folder(
    config: Config, start: Start, pretrain: Pretrain, tmp_path: Path
) -> None:
    first = start(config(), "train.steps=100000")
    assert reaches(first, tmp_path / "run", 1)
    second = pretrain(config())
    assert second.code == 2
    assert f"is in use by process {first.process.pid} on host" in second.stderr
    assert reaches(first, tmp_path / "run", rows(tmp_path / "run")[-1]["step"] + 1)
