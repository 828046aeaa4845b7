"""Whole steps are measured as training takes them, and nothing is left behind."""

import gzip
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import ENVIRONMENT, TIMEOUT, command, fresh_accelerate, group
from modality_cases import MODALITIES
from small_runs import SmallRuns
from tiny import DECODER, JOINT
from torch import nn

from selfdistill.bench import machine, sweep
from selfdistill.bench.profile import STEPS, write_trace
from selfdistill.bench.sweep import why_enough
from selfdistill.bench.trace import WINDOW
from selfdistill.bench.verdict import DATA_WAIT
from selfdistill.bench.workload import DoesNotFit, _memory_explained
from selfdistill.cli import main
from selfdistill.config import RunConfig
from selfdistill.models.decoder import Decoder
from selfdistill.objective.teacher import Teacher
from selfdistill.step_parts import PARTS, PREFIX

Bench = Callable[..., int]


@pytest.fixture
def bench(runs: SmallRuns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """``selfdistill bench`` of a modality's small config; returns the exit code."""
    for key, value in ENVIRONMENT.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(machine, "SIZES", machine.SIZES[:2])  # the best rate is not asked for

    def run(modality: str, *words: str) -> int:
        path = runs.config_file(modality, tmp_path / "run")
        with fresh_accelerate():
            return main(["bench", str(path), "optim.warmup_steps=0", *words])

    return run


@pytest.mark.parametrize("modality", [*MODALITIES, JOINT])
def test_figures_of_a_step(
    modality: str, bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench(modality, "--steps=4", "--json", "model.layer_drop=0.4") == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert found["steps"] == 4
    names = {*MODALITIES} if modality == JOINT else {modality}
    assert found["modalities"].keys() == names
    assert found["batch_size"] == (12 if modality == JOINT else 8)
    seconds = found["step_seconds"]
    assert 0 < seconds["p10"] <= seconds["median"] <= seconds["p90"]
    assert found["samples_per_second"] == pytest.approx(found["batch_size"] / seconds["mean"])
    assert sum(found["shares"].values()) == pytest.approx(1)
    assert {part for part in PARTS if found["shares"][part] > 0} >= {
        "teacher",
        "student",
        "backward",
        "optimiser",
        "ema",
    }
    assert abs(found["flops"]["deviation"]) < 0.02
    assert 0 < found["use"] < 1
    assert found["memory"]["resident"] > 10_000_000
    assert found["left_out"] == 0
    assert found["verdict"]
    assert "measuring 4 steps" in printed.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("slow", [Teacher, Decoder])
def test_a_part_that_takes_longer_has_the_larger_share(
    slow: type[nn.Module],
    bench: Bench,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both are called once in a step: what it waits there is theirs, whatever the machine does."""
    forward, part = slow.forward, {Teacher: "teacher", Decoder: "decoder"}[slow]

    def slower(self: nn.Module, *parts: Any) -> Any:
        time.sleep(0.1)
        return forward(self, *parts)

    monkeypatch.setattr(slow, "forward", slower)
    trace = tmp_path / "step.json"
    words = ["strategy=visible", *(f"decoder.{key}={value}" for key, value in DECODER.items())]
    assert bench("text", *words, "--steps=2", "--json", f"--profile={trace}") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["step_seconds"]["median"] > 0.1
    events = json.loads(trace.read_bytes())["traceEvents"]
    (window,) = (event for event in events if event["name"] == WINDOW)
    calls = sum(e["name"] == PREFIX + part and e["ts"] > window["ts"] for e in events)
    assert calls == STEPS
    waited = 1e5 * calls / window["dur"] * (1 - found["shares"][DATA_WAIT])
    assert found["shares"][part] >= 0.999 * waited


def test_the_table_and_the_trace(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "step.json.gz"
    assert bench("image", "--steps=2", f"--profile={trace}") == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("image, 8 in a step: ") for line in lines)
    assert any(line.split()[:1] == ["teacher"] for line in lines)
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    assert {f"step/{part}" for part in ("teacher", "backward", "ema")} <= {
        event.get("name") for event in events
    }


@pytest.mark.parametrize(("name", "is_packed"), [("a.json", False), ("B.JSON.GZ", True)])
def test_a_trace_is_packed_as_its_name_says(name: str, is_packed: bool, tmp_path: Path) -> None:
    write_trace({"traceEvents": []}, tmp_path / name)
    content = (tmp_path / name).read_bytes()
    assert json.loads(gzip.decompress(content) if is_packed else content) == {"traceEvents": []}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--profile=trace.txt"], "--profile: 'trace.txt' must end in .json or .json.gz"),
        (["--steps=0"], "--steps: 0 must be 1 or more"),
        (["--sweep=batch", "train.accumulate=2"], "train.accumulate: 2, but --sweep batch"),
        (["--sweep=batch", "--profile=a.json"], "--sweep: keeps no trace"),
        (["data.train=[nowhere.tar]"], "data.train"),
    ],
)
def test_mistakes(
    words: list[str], said: str, bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench("image", *words) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert said in line


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        torch.AcceleratorError("CUDA error: out of memory"),  # a kernel could not be loaded
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:128] DefaultCPUAllocator: can't allocate memory"
        ),
    ],
    ids=lambda error: str(error)[:30],
)
def test_memory_is_short(error: Exception, tiny_config: Callable[..., RunConfig]) -> None:
    config = tiny_config("text")
    with pytest.raises(DoesNotFit, match=r"train\.batch_size"), _memory_explained(config):
        raise error


def test_other_errors_are_not_taken_for_it(tiny_config: Callable[..., RunConfig]) -> None:
    with pytest.raises(RuntimeError, match="illegal"), _memory_explained(tiny_config("text")):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")


def test_a_sweep(
    bench: Bench, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to the first batch that does not fit; that of the first is measured."""
    measure, measured = sweep._in_a_process, {}

    def small(config: Any, steps: int) -> dict[str, Any]:
        if config.train.batch_size > 2:
            raise DoesNotFit("it is full")
        if not measured:  # the imports of a process take seconds
            measured.update(measure(config, steps))
            assert measured["batch_size"] == config.train.batch_size
        return {**measured, "batch_size": config.train.batch_size}

    monkeypatch.setattr(sweep, "_in_a_process", small)
    assert bench("image", "--steps=1", "--sweep=batch", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["batch_size"] for one in found["sizes"]] == [1, 2]
    assert (found["largest"], found["ended"]) == (2, "4 samples do not fit into memory")


@pytest.mark.slow
def test_what_a_sweep_has_started_ends_with_it(runs: SmallRuns, tmp_path: Path) -> None:
    """And says nothing: its words would stand behind the prompt of the shell."""

    def kill(process: "subprocess.Popen[bytes]") -> None:
        began = time.monotonic()
        while len(group(process.pid)) < 3 and time.monotonic() < began + TIMEOUT / 2:
            time.sleep(0.1)  # itself, a tracker of resources, and what measures
        time.sleep(2)
        process.kill()

    config = str(runs.config_file("image", tmp_path / "run"))
    words = ("bench", config, "--sweep=batch", "--steps=1000000", "optim.warmup_steps=0")
    ended = command("-m", "selfdistill", *words, meanwhile=kill)  # returns when all have ended
    assert ended.code == -signal.SIGKILL
    assert "Traceback" not in ended.stderr


@pytest.mark.slow
def test_a_sweep_that_is_interrupted_says_so_in_a_line(runs: SmallRuns, tmp_path: Path) -> None:
    """Even while what measures is being started."""
    config = str(runs.config_file("image", tmp_path / "run"))

    def interrupt(process: "subprocess.Popen[bytes]") -> None:
        assert process.stderr is not None
        assert process.stderr.readline() == b"measuring train.batch_size=1\n"
        os.killpg(process.pid, signal.SIGINT)

    words = ("bench", config, "--sweep=batch", "--steps=1000000", "optim.warmup_steps=0")
    ended = command("-m", "selfdistill", *words, meanwhile=interrupt)
    assert (ended.code, ended.stderr) == (-signal.SIGINT, "selfdistill: interrupted\n")


def size(rate: float, resident: float = 1e9, device: str = "cpu") -> dict[str, Any]:
    return {
        "samples_per_second": rate,
        "step_seconds": {"median": 1.0},
        "machine": {"device_type": device},
        "memory": {"resident": resident},
    }


def test_when_a_sweep_has_had_enough() -> None:
    growing = [size(10.0), size(20.0), size(40.0)]
    assert not why_enough(growing, free=None)
    assert "gave no more samples/s" in why_enough([*growing, size(40.5), size(41.0)], free=None)
    assert not why_enough([*growing, size(40.5, device="cuda")], free=None)
    fuller = [size(10.0, 1e9), size(20.0, 3e9)]
    assert not why_enough(fuller, free=int(10e9))
    assert "would need about 7.0 GB, and 8.0 are free" in why_enough(fuller, free=int(8e9))
