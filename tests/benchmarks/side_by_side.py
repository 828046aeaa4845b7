"""Our training step beside another one: time in turns, memory in processes of their own.

Both have the same architecture, dropout, inputs and masked places; ours is ``Trainer.step``. They
take turns, ABBA, in one process with one thread; compared is processor time, by the median of the
rounds' ratios. Peak memory is that of processes of their own after three steps (Linux): what they
have grown by since there was no model yet, so weights, optimiser and teacher are in it.

On a GPU compared is time on the clock until the device is done, and memory is what torch has
allocated there at most. That was not run yet.
"""

import multiprocessing
import os
import re
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from measuring import Action, Ratio, Seconds, in_turns, median, ratio_of
from memory import batch_of

from selfdistill.config import RunConfig
from selfdistill.config_files.load import load_config
from selfdistill.data.ledger import Loaded
from selfdistill.engine.accelerator import build_accelerator
from selfdistill.engine.metrics import Progress
from selfdistill.engine.trainer import Trainer
from selfdistill.modalities.base import load_modality
from selfdistill.modalities.text.tokenizer import TOKENIZER_FILE
from selfdistill.modalities.text.training import train_tokenizer
from selfdistill.objective.data2vec import Data2Vec
from selfdistill.types import Batch

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
MODALITIES = ("image", "audio", "text")
SIZE = ("model.width=384", "model.heads=6")
LENGTH = {"image": (), "audio": ("input.max_seconds=5",), "text": ("input.max_tokens=256",)}
OURS = "ours"
MEMORY_STEPS = 3
STEPS_PER_ROUND = {"cpu": 1, "cuda": 20}


@dataclass(frozen=True, kw_only=True)
class Case(ABC):
    """What both do a step on.

    Attributes:
        name: of the other one.
        device: cpu or cuda.
    """

    name: ClassVar[str]
    modality: str
    batch_size: int
    device: str = "cpu"

    @abstractmethod
    def build(self) -> tuple[RunConfig, Batch]: ...

    @abstractmethod
    def load_code(self) -> None:
        """Imports what the other one needs."""

    @abstractmethod
    def their_step(self, config: RunConfig, batch: Batch) -> Action: ...

    def step_of(self, contender: str, config: RunConfig, batch: Batch) -> Action:
        torch.manual_seed(config.seed)
        return our_step(config, batch) if contender == OURS else self.their_step(config, batch)


def noise(path: Path, words: Iterable[str], batch_size: int) -> tuple[RunConfig, Batch]:
    """A config with overrides, by itself in fp32, and a batch of noise with masks."""
    config = load_config(path, ["run_dir=unused", "train.precision=fp32", *words], load_modality)
    if config.modality != "text":
        return config, batch_of(config, batch_size)
    with tempfile.TemporaryDirectory() as folder:  # the pipeline wants one, noise needs none
        train_tokenizer(["some words to cut"] * 9, 24, Path(folder))
        tokenizer = str(Path(folder) / TOKENIZER_FILE)
        config = replace(config, input=replace(config.input, tokenizer=tokenizer))
        return config, batch_of(config, batch_size)


def our_step(config: RunConfig, batch: Batch) -> Action:
    """A step of the real trainer."""
    accelerator = build_accelerator(config)
    progress = Progress(config.train.steps, 0, main=False)
    trainer = Trainer(Data2Vec(config), config, accelerator, None, None, progress, {})
    loaded = Loaded(batch, [], len(batch.inputs))
    if accelerator.device.type == "cuda":
        loaded = loaded.pin_memory()  # as the loader does; else the host waits for every copy
    return lambda: trainer.step([{config.modality: loaded}])


def on_cpu() -> None:
    """On one thread of it."""
    os.environ["ACCELERATE_USE_CPU"] = "true"
    torch.set_num_threads(1)


def steps_of(case: Case) -> dict[str, Action]:
    """By name, ours first."""
    config, batch = case.build()
    steps = {name: case.step_of(name, config, batch) for name in (OURS, case.name)}
    return {name: _until_done(step, case.device) for name, step in steps.items()}


def _until_done(step: Action, device: str) -> Action:
    if device == "cpu":
        return step

    def several() -> None:
        for _ in range(STEPS_PER_ROUND[device]):
            step()
        torch.cuda.synchronize()

    return several


class Times(NamedTuple):
    """Medians of each one's step, and how many times as long the other one's is."""

    ours: Seconds
    theirs: Seconds
    processor: Ratio
    clock: Ratio


def compare_times(steps: Mapping[str, Action], rounds: int, say: Callable[[str], object]) -> Times:
    """
    Args:
        steps: as ``steps_of`` gives them.
        rounds: of one step each.
        say: is given lines on the way.
    """
    ours, theirs = in_turns(steps, rounds, say).values()
    processor = ratio_of([s.processor for s in theirs], [s.processor for s in ours])
    clock = ratio_of([s.clock for s in theirs], [s.clock for s in ours])
    return Times(median(ours), median(theirs), processor, clock)


def peak_megabytes(case: Case, contender: str) -> float:
    """What a process of its own grows by, in MiB."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_grown, (case, contender))


def _grown(case: Case, contender: str) -> float:
    if case.device == "cpu":
        on_cpu()
    config, batch = case.build()
    case.load_code()  # whichever is measured: code is no memory of a step
    before = _memory("VmRSS")
    step = case.step_of(contender, config, batch)
    for _ in range(MEMORY_STEPS):
        step()
    if case.device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return _memory("VmHWM") - before


def _memory(field: str) -> float:
    """MiB, of this process."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    (kilobytes,) = re.findall(rf"^{field}:\s+(\d+) kB", status, re.MULTILINE)
    return int(kilobytes) / 1024


def compare(case: Case, rounds: int) -> dict[str, Any]:
    """Times and memory as plain JSON values."""

    def say(line: str) -> None:
        print(f"{case.modality}, {line}", file=sys.stderr, flush=True)

    megabytes = {name: peak_megabytes(case, name) for name in (OURS, case.name)}
    say(", ".join(f"{name} {value:.0f} MiB" for name, value in megabytes.items()))
    times = compare_times(steps_of(case), rounds, say)
    return {
        "case": asdict(case),
        "rounds": rounds,
        "seconds": {OURS: times.ours._asdict(), case.name: times.theirs._asdict()},
        "processor_ratio": times.processor._asdict(),
        "clock_ratio": times.clock._asdict(),
        "megabytes": megabytes,
        "memory_ratio": megabytes[OURS] / megabytes[case.name],
    }


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Of what ``compare`` gave, by modality."""
    first = next(iter(results.values()))
    ours, theirs = first["megabytes"]
    lines = [
        f"| | {ours}, CPU s | {theirs}, CPU s | times as fast, CPU | on the clock "
        f"| {ours}, MiB | {theirs}, MiB | memory |",
        "|---" * 8 + "|",
    ]
    for modality, result in results.items():
        seconds, megabytes = result["seconds"], result["megabytes"]
        cells = [
            modality,
            f"{seconds[ours]['processor']:.2f}",
            f"{seconds[theirs]['processor']:.2f}",
            str(Ratio(**result["processor_ratio"])),
            str(Ratio(**result["clock_ratio"])),
            f"{megabytes[ours]:,.0f}",
            f"{megabytes[theirs]:,.0f}",
            f"{result['memory_ratio']:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    interval, rounds = first["processor_ratio"]["interval"], first["rounds"]
    return "\n".join([*lines, f"Medians of {rounds} rounds; in brackets {interval}."])
