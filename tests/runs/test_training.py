"""What a run computes and leaves behind: on one process or two, in every precision."""

import json
import math
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from launching import Ended, Running, checkpoint, python, rows, torchrun, weights
from modality_cases import MODALITIES
from small_runs import saved
from tiny import JOINT, STEPS, write_task
from worlds import Job, train

from selfdistill.config_files.load import load_config
from selfdistill.modalities.base import load_modality
from selfdistill.schedules import ema_decay

Config = Callable[..., str]
Pretrain = Callable[..., Ended]

NO_CHANCE = [
    "model.dropout=0",
    "model.attention_dropout=0",
    "model.activation_dropout=0",
    "model.drop_path=0",
    "model.layer_drop=0",
]
SPLIT = {
    # chance and equal_counts depend on how a step is split up
    "audio": [*NO_CHANCE, "encoder.input_dropout=0", "mask.equal_counts=false"],
    "image": NO_CHANCE,
    "text": NO_CHANCE,
    JOINT: [
        *NO_CHANCE,
        "modalities.audio.encoder.input_dropout=0",
        "modalities.audio.mask.equal_counts=false",
        "decoder.mask_noise_std=0",
    ],
}


def assert_close(run: Path, other: Path, step: int) -> None:
    """Equal but for the order of sums; the teacher too."""
    found, wanted = saved(run, step), saved(other, step)
    assert found.keys() == wanted.keys()
    assert any(name.startswith("teacher.") for name in found)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=2e-6, msg=name)


def assert_logged_alike(run: Path, other: Path) -> None:
    """For each modality, where there are several."""
    names = ("loss", "grad_norm", "target_std", "prediction_std", "masked_share")
    for row, wanted in zip(rows(run), rows(other), strict=False):
        keys = [key for key in wanted if key.rpartition("/")[2] in names]
        assert len(keys) >= len(names)
        for key in keys:
            assert row[key] == pytest.approx(wanted[key], rel=1e-4)


# Adam divides by the root of the second moment: a large eps keeps rounding errors of gradients
# that are zero in exact arithmetic (biases of keys) from becoming whole steps
THREE_STEPS = ["train.steps=3", "optim.warmup_steps=0", "optim.eps=1e-3", "optim.lr=1e-2"]


@pytest.mark.parametrize("modality", [*MODALITIES, JOINT])
def test_accumulation(modality: str, config: Config, pretrain: Pretrain, tmp_path: Path) -> None:
    words = [*SPLIT[modality], *THREE_STEPS]
    assert pretrain(config(modality, "one"), *words).code == 0
    assert pretrain(config(modality, "four"), *words, "train.accumulate=4").code == 0
    one, four = tmp_path / "one", tmp_path / "four"
    assert_close(four, one, 3)
    assert_logged_alike(four, one)


def test_teacher_moves_once_per_step(config: Config, pretrain: Pretrain, tmp_path: Path) -> None:
    words = ["train.steps=2", "optim.warmup_steps=0", "checkpoint.every=1", "train.accumulate=4"]
    assert pretrain(config("image"), *words).code == 0
    first, second = (saved(tmp_path / "run", step) for step in (1, 2))
    settings = load_config(Path(config("image")), words, load_modality)
    decay = ema_decay(2, settings.teacher, 0)
    moved = 0
    for name, value in first.items():
        if name.startswith("teacher.") and value.is_floating_point():
            student = second[name.replace("teacher.", "student.", 1)]
            torch.testing.assert_close(second[name], decay * value + (1 - decay) * student)
            moved += not torch.equal(second[name], value)
    assert moved > 10


def on_two(output: Path, *words: str) -> str:
    """What two processes of ``selfdistill pretrain`` say."""
    train(2, [Job(words)], output)
    return "".join((output / str(rank)).read_text() for rank in (0, 1))


def test_two_processes(config: Config, pretrain: Pretrain, tmp_path: Path) -> None:
    words = [*SPLIT["audio"], *THREE_STEPS]
    task = json.dumps(write_task(tmp_path, "audio"))
    assert pretrain(config("audio", "one"), *words).code == 0
    said = on_two(tmp_path / "output", config("audio", "two"), *words, f"eval.tasks.tone={task}")
    assert_close(tmp_path / "two", tmp_path / "one", 3)
    found = rows(tmp_path / "two")
    assert [row["step"] for row in found] == [1, 2, 3, 3]
    assert_logged_alike(tmp_path / "two", tmp_path / "one")
    assert said.count("step 3/3") == 1
    assert said.count("labelled samples for training") == 1


def test_two_processes_resume(config: Config, tmp_path: Path) -> None:
    words = [config("text"), "train.steps=9", "checkpoint.keep=9", "optim.warmup_steps=2"]
    on_two(tmp_path / "first", *words)
    run = tmp_path / "run"
    before = weights(run, 9)
    broken = checkpoint(run, 9) / "model.safetensors"
    broken.write_bytes(b"")
    said = on_two(tmp_path / "second", *words, "optim.weight_decay=0.01")
    assert said.count(f"{broken} is damaged") == 1
    assert said.count(f"resumed from {checkpoint(run, 7)}") == 1
    assert weights(run, 9) == before


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Start two processes of ``selfdistill pretrain`` under torchrun."""
    started: list[Running] = []

    def run(*words: str) -> Running:
        started.append(torchrun(tmp_path / "output", *words))
        return started[-1]

    yield run
    for running in started:
        running.clear()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_two_processes_asked_to_stop(
    number: signal.Signals, config: Config, launch: Callable[..., Running], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    running = launch(config("text"), "train.steps=100000", "checkpoint.every=100000")
    while running.process.is_alive() and len(rows(run)) < 3:
        time.sleep(0.02)
    # as a terminal or a batch system does; torchrun then sends it to both once more
    os.killpg(running.process.pid, number)
    ended = running.wait()
    step = rows(run)[-1]["step"]
    assert [path.name for path in (run / "checkpoints").iterdir()] == [f"step-{step:08d}"]
    assert ended.stderr.count(f"stopped by signal {number.name} after step {step};") == 1


def test_two_processes_and_a_mistake(config: Config, launch: Callable[..., Running]) -> None:
    ended = launch(config("image"), "train.batch_size=9").wait()
    assert ended.code == 1  # torchrun's own
    assert ended.stderr.count("selfdistill: train.batch_size: 9 samples cannot be split") == 1
    assert "exitcode  : 2" in ended.stderr


def test_accelerate_launch(config: Config, pretrain: Pretrain, tmp_path: Path) -> None:
    words = ["train.steps=6"]
    launcher = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes=1"]
    launched = [*launcher, "-m", "selfdistill", "pretrain", config("image", "launched"), *words]
    ended = Running(launched, tmp_path / "output", program=python).wait()
    assert ended.code == 0, ended.stderr
    assert pretrain(config("image", "plain"), *words).code == 0
    assert weights(tmp_path / "launched", 6) == weights(tmp_path / "plain", 6)


def test_bf16(
    config: Config, pretrain: Pretrain, reference: Callable[[str], Path], tmp_path: Path
) -> None:
    for modality in MODALITIES:
        words = ["train.precision=bf16", "train.steps=8"]
        ended = pretrain(config(modality, modality), *words)
        assert ended.code == 0, ended.stderr
        run = tmp_path / modality
        assert all(math.isfinite(row["loss"]) for row in rows(run))
        first, in_fp32 = (rows(path)[0]["loss"] for path in (run, reference(modality)))
        assert first != in_fp32
        assert first == pytest.approx(in_fp32, rel=0.05)
        floats = [value for value in saved(run, 8).values() if value.is_floating_point()]
        assert {value.dtype for value in floats} == {torch.float32}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_convolutions_are_in_tf32_where_fp32_is_not_asked_for(
    precision: str, config: Config, here: Pretrain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    words = [f"train.precision={precision}", "train.steps=1", "optim.warmup_steps=0"]
    assert here(config("audio"), *words).code == 0
    assert torch.backends.cudnn.allow_tf32 == (precision == "bf16")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU does fp16")
def test_fp16_needs_a_gpu(config: Config, here: Pretrain, tmp_path: Path) -> None:
    ended = here(config(), "train.precision=fp16")
    assert ended.code == 2
    assert "train.precision: fp16 does not work on device 'cpu'" in ended.stderr
    assert "choose fp32 or bf16" in ended.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("modality", MODALITIES)
def test_evaluation_changes_nothing(
    modality: str,
    config: Config,
    pretrain: Pretrain,
    reference: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    task = json.dumps(write_task(tmp_path, modality))
    words = [f"eval.tasks.label={task}", "eval.every=25"]
    ended = pretrain(config(modality), *words)
    assert ended.code == 0, ended.stderr
    run = tmp_path / "run"
    assert weights(run, STEPS) == weights(reference(modality), STEPS)
    evaluated = [row["step"] for row in rows(run) if "eval/label/linear" in row]
    assert evaluated == [25, 50, STEPS]
    check_table(json.loads((run / "eval.json").read_text()), modality)
    for word in ("raw", "untrained", "trained", "linear", "few-shot", "kNN"):
        assert word in ended.stdout


def check_table(found: dict[str, Any], modality: str) -> None:
    assert list(found) == [modality]
    assert found[modality]["step"] == STEPS
    for probe in ("linear", "few_shot", "knn"):
        table = found[modality][probe]
        for source in ("raw", "untrained", "trained"):
            assert 0 <= table[source] <= 1
        assert table["layer"] in (0, 1, 2)
        assert found[modality]["tasks"]["label"][probe] == table


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["optim.warmup_steps=4", "optim.min_lr=0.2"], lambda n: _cosine(n, 4, 0.2)),
        (["optim.schedule=constant", "optim.warmup_steps=4"], lambda n: min(n / 4, 1.0)),
        (
            ["optim.schedule=tri_stage", "optim.warmup_steps=0", "optim.phase_ratio=[0.2,0.5,0.3]"],
            lambda n: _tri_stage(n, 4, 10, 6),
        ),
    ],
)
def test_schedules(
    words: list[str],
    expected: Callable[[int], float],
    config: Config,
    pretrain: Pretrain,
    tmp_path: Path,
) -> None:
    assert pretrain(config(), *words, "optim.lr=1", "train.steps=20").code == 0
    # the first step is taken at rate(0)
    wanted = [expected(n) for n in range(20)]
    assert [row["lr"] for row in rows(tmp_path / "run")] == pytest.approx(wanted, abs=1e-9)


def _cosine(n: int, warmup: int, low: float) -> float:
    if n < warmup:
        return n / warmup
    return low + (1 - low) * (1 + math.cos(math.pi * (n - warmup) / (20 - warmup))) / 2


def _tri_stage(n: int, warmup: int, hold: int, decay: int) -> float:
    if n < warmup:
        return 0.01 + 0.99 * n / warmup
    return 1.0 if n < warmup + hold else 0.01 ** ((n - warmup - hold) / decay)


def test_another_seed(
    config: Config, pretrain: Pretrain, reference: Callable[[str], Path], tmp_path: Path
) -> None:
    assert pretrain(config("image", "other"), "seed=4", "train.steps=6").code == 0
    losses = [row["loss"] for row in rows(reference("image"))]
    assert not {row["loss"] for row in rows(tmp_path / "other")} & {*losses}


def test_run_folder(config: Config, pretrain: Pretrain, tmp_path: Path) -> None:
    words = ["log.tensorboard=true", "train.steps=25", "log.every=4", "checkpoint.every=4"]
    ended = pretrain(config(), *words)
    assert ended.code == 0, ended.stderr
    run = tmp_path / "run"
    assert {path.name for path in run.iterdir()} == {
        "checkpoints",
        "config.yaml",
        "environment.json",
        "lock",
        "metrics.jsonl",
        "tensorboard",
    }
    assert [path.name for path in sorted((run / "checkpoints").iterdir())] == [
        "step-00000020",
        "step-00000024",
        "step-00000025",
    ]
    assert [row["step"] for row in rows(run)] == [4, 8, 12, 16, 20, 24, 25]
    for row in rows(run):
        assert row["samples_per_second"] > 0
        assert row["target_std"] > 0
        assert row["prediction_std"] > 0
        assert row["masked_share"] == pytest.approx(0.5, abs=0.05)
        assert row["grad_norm"] > 0
        assert math.isfinite(row["loss"])
        assert 0.9 < row["ema_decay"] <= 0.99
        assert 0 <= row["data_wait"] <= 1
        assert row["bad_samples"] == 0
    environment = json.loads((run / "environment.json").read_text())
    assert environment["packages"]["torch"] == torch.__version__.partition("+")[0]
    assert environment["seed"] == 3
    assert len(list((run / "tensorboard").iterdir())) == 1
    # the saved config is the whole config: it makes the same run
    saved = load_config(run / "config.yaml", [], load_modality)
    assert saved == load_config(Path(config()), words, load_modality)
    before = weights(run, 25)
    shutil.rmtree(run / "checkpoints")
    copy = tmp_path / "copy.yaml"
    copy.write_text((run / "config.yaml").read_text())
    assert pretrain(str(copy)).code == 0
    assert weights(run, 25) == before


def test_config_is_plain_yaml(reference: Callable[[str], Path]) -> None:
    for modality in MODALITIES:
        found = yaml.safe_load((reference(modality) / "config.yaml").read_text())
        assert found["modality"] == modality
        assert found["optim"]["betas"] == [0.9, 0.98]
        assert found["model"]["width"] == 16


def broken_board() -> None:
    from torch.utils import tensorboard

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no room for boards")

    tensorboard.SummaryWriter.add_scalar = fail


def test_broken_tensorboard(config: Config, pretrain: Pretrain, tmp_path: Path) -> None:
    words = ["log.tensorboard=true", "train.steps=8"]
    ended = pretrain(config(), *words, setup=broken_board)
    assert ended.code == 0
    assert ended.stderr.count("TensorBoard fails") == 1
    assert "no room for boards" in ended.stderr
    assert [row["step"] for row in rows(tmp_path / "run")] == [*range(1, 9)]


def test_init_from(config: Config, pretrain: Pretrain, tmp_path: Path) -> None:
    """A run that starts from another's weights has them, but not its steps."""
    assert pretrain(config("text", "first"), *THREE_STEPS).code == 0
    words = [f"init_from={tmp_path / 'first'}", "train.steps=1", "optim.lr=1e-30"]
    assert pretrain(config("text", "second"), "optim.warmup_steps=0", *words).code == 0
    first, second = saved(tmp_path / "first", 3), saved(tmp_path / "second", 1)
    assert [row["step"] for row in rows(tmp_path / "second") if "loss" in row] == [1]
    trained = [name for name in first if name.startswith(("student.", "predictors."))]
    assert trained
    for name in trained:
        torch.testing.assert_close(second[name], first[name], rtol=0, atol=1e-12)
    ended = pretrain(config("text", "third"), f"init_from={tmp_path / 'nowhere'}")
    assert ended.code == 2
    assert "init_from: there is no" in ended.stderr
