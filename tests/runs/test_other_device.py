"""A GPU: a step has all its tensors there, and the host hands out step after step without waiting.

Where there is none, a device in host memory stands in for it (``other_device``).
"""

import itertools
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import other_device
import pytest
import torch
import yaml
from launching import Ended, Running, rows
from modality_cases import MODALITIES
from safetensors.torch import load_file
from tiny import DECODER, JOINT, write_task

from selfdistill.engine.trainer import Trainer
from selfdistill.engine.training_step import TrainingStep

# which layers are dropped is drawn on the host
WORDS = ["train.steps=5", "log.every=4", "optim.warmup_steps=1", "model.layer_drop=0"]
DECODERS = [f"decoder.{key}={value}" for key, value in DECODER.items()]

every_kind_of_run = pytest.mark.parametrize(
    ("modality", "strategy"),
    [*itertools.product(MODALITIES, ("dense", "visible")), (JOINT, "visible")],
)


@pytest.fixture
def there(tmp_path: Path, pretrain: Callable[..., Ended]) -> Callable[..., list[list[str]]]:
    """Pretrain on the other device; returns what the host waited for, a list for each step."""

    def run(*words: str, setup: Callable[[Path], None] = other_device.install) -> list[list[str]]:
        log = tmp_path / "waits"
        ended = pretrain(*words, setup=partial(setup, log))
        assert ended.code == 0, ended.stderr
        return [json.loads(line) for line in log.read_text().splitlines()]

    return run


def without_dropout(path: str) -> str:
    """The same config; which elements are dropped is drawn in another way on another device."""
    content = yaml.safe_load(Path(path).read_text())
    Path(path).write_text(yaml.safe_dump(_zeroed(content)))
    return path


def _zeroed(content: Any) -> Any:
    if not isinstance(content, dict):
        return content
    return {k: 0.0 if k.endswith("dropout") else _zeroed(v) for k, v in content.items()}


@every_kind_of_run
def test_a_run_waits_for_nothing_and_learns_the_same(
    modality: str,
    strategy: str,
    tmp_path: Path,
    config: Callable[..., str],
    pretrain: Callable[..., Ended],
    there: Callable[..., list[list[str]]],
) -> None:
    words = [*WORDS, *DECODERS, f"strategy={strategy}", "train.accumulate=2"]
    waits = there(without_dropout(config(modality)), *words)
    assert waits == [[]] * 5
    ended = pretrain(without_dropout(config(modality, "here")), *words)
    assert ended.code == 0, ended.stderr
    mine, expected = rows(tmp_path / "run"), rows(tmp_path / "here")
    assert len(mine) == len(expected) == 2
    for row, other in zip(mine, expected, strict=True):
        for key in ("loss", "grad_norm", "grad_norm_blocks", "teacher_distance"):
            assert row[key] == pytest.approx(other[key], rel=1e-5), key


def test_neither_with_dropout_and_blocks_that_are_recomputed(
    config: Callable[..., str], there: Callable[..., list[list[str]]]
) -> None:
    waits = there(config(JOINT), *WORDS, "train.activation_checkpointing=true")
    assert waits == [[]] * 5


def _installed_with_mistakes(log: Path) -> None:
    other_device.install(log)
    seed = TrainingStep._seed

    def waiting(self: TrainingStep, number: int) -> None:
        seed(self, number)
        x = torch.ones(3, device=self.accelerator.device)
        if number < 4:
            [lambda: x[0].item(), x.cpu, lambda: x[x > 0], x.nonzero][number]()
        else:
            x + torch.ones(3)

    TrainingStep._seed = waiting  # type: ignore[method-assign]


def test_mistakes_are_noticed(
    tmp_path: Path, config: Callable[..., str], pretrain: Callable[..., Ended]
) -> None:
    ended = pretrain(
        config("text"), *WORDS, setup=partial(_installed_with_mistakes, tmp_path / "w")
    )
    assert "tensors of two devices; on the CPU are [[3]]" in ended.stderr
    waits = [json.loads(line) for line in (tmp_path / "w").read_text().splitlines()]
    found = [name.split(".")[1] for name in itertools.chain.from_iterable(waits)]
    assert found == ["_local_scalar_dense", "_to_copy", "index", "nonzero"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch watches for it on a GPU only")
@every_kind_of_run
def test_torch_sees_no_waiting_either(
    modality: str,
    strategy: str,
    config: Callable[..., str],
    here: Callable[..., Ended],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    step = Trainer.step

    def watching(self: Trainer, *parts: Any) -> None:
        torch.cuda.set_sync_debug_mode("error")
        step(self, *parts)
        torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Trainer, "step", watching)
    monkeypatch.delenv("ACCELERATE_USE_CPU")
    words = [*WORDS, *DECODERS, f"strategy={strategy}", "train.precision=bf16"]
    ended = here(config(modality), *words)
    assert ended.code == 0, ended.stderr


def test_frozen_features_are_the_same(
    tmp_path: Path, config: Callable[..., str], there: Callable[..., list[list[str]]]
) -> None:
    task = write_task(tmp_path / "task", "audio")
    tasks = f"eval.tasks={{word: {json.dumps(task)}}}"
    there(config("audio"), *WORDS, tasks, "eval.pictures=true", "eval.every=3")
    assert [row["step"] for row in rows(tmp_path / "run") if "eval/word/linear" in row] == [3, 5]
    install = partial(other_device.install, tmp_path / "log")

    def run(*words: str, setup: Callable[[], object] | None = None) -> None:
        ended = Running([*words], tmp_path / words[-1], setup).wait()
        assert ended.code == 0, ended.stderr

    words = ["embed", str(tmp_path / "run"), *task["test"], "--layers", "all"]
    files = [tmp_path / f"{name}.safetensors" for name in ("there", "here")]
    run(*words, "--out", str(files[0]), "--device", other_device.NAME, setup=install)
    run(*words, "--out", str(files[1]), "--device", "cpu")
    torch.testing.assert_close(*map(load_file, files))
    words = ["probe", str(tmp_path / "run"), *task["test"], "--few-shot", "2"]
    words += ["--cache", str(tmp_path / "cache")]
    run(*words, "--device", other_device.NAME, setup=install)
