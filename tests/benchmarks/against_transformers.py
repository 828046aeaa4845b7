"""A training step of ours beside the loop that people write today around transformers' models.

    python tests/benchmarks/against_transformers.py [image audio text] [--rounds 7] [--bf16]

Both have the same architecture, dropout, inputs and masked places; ours is ``Trainer.step``, the
other ``todays_loop.py``. They take turns, ABBA, in one process with one thread; compared is
processor time, by the median of the rounds' ratios. Peak memory is that of processes of their own
after three steps (Linux): what they have grown by since there was no model yet, so weights,
optimiser and teacher are in it. With --strategy visible the other loop, whose models cannot leave
tokens out, reads every masked row in full, and has no decoder.

With --device cuda both have base size, multiply in bf16 and are eager or, with --compile, compiled;
compared is time on the clock until the device is done, and memory is what torch has allocated there
at most. That was not run yet.
"""

import argparse
import multiprocessing
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from measuring import Action, Ratio, Seconds, in_turns, median, origin, ratio_of, write_result
from memory import batch_of

from selfdistill.config import RunConfig
from selfdistill.config_files.load import load_config
from selfdistill.data.ledger import Loaded
from selfdistill.engine.metrics import Progress
from selfdistill.engine.trainer import Trainer
from selfdistill.modalities.base import load_modality
from selfdistill.modalities.text.tokenizer import TOKENIZER_FILE
from selfdistill.modalities.text.training import train_tokenizer
from selfdistill.objective.data2vec import Data2Vec
from selfdistill.pretrain import build_accelerator
from selfdistill.types import Batch

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
FILES = {
    ("image", "dense"): "image/base_imagenet.yaml",
    ("audio", "dense"): "audio/base_librispeech.yaml",
    ("text", "dense"): "text/base.yaml",
    ("image", "visible"): "image/base_visible.yaml",
    ("audio", "visible"): "audio/base_visible.yaml",
    ("text", "visible"): "text/base_visible.yaml",
}
MODALITIES = ("image", "audio", "text")
BATCH = {
    "cpu": {"image": 8, "audio": 2, "text": 8},
    "cuda": {"image": 128, "audio": 16, "text": 32},
}
SIZE = ("model.width=384", "model.heads=6")
LENGTH = {"image": (), "audio": ("input.max_seconds=5",), "text": ("input.max_tokens=256",)}
VISIBLE = {
    modality: ("mask.num_masks=4", f"decoder.width={width}")
    for modality, width in {"image": 384, "audio": 192, "text": 384}.items()
}
NO_DROPOUT = (
    "model.dropout=0",
    "model.attention_dropout=0",
    "model.activation_dropout=0",
    "model.drop_path=0",
    "model.layer_drop=0",
)
OURS, THEIRS = "ours", "transformers"
MEMORY_STEPS = 3
STEPS_PER_ROUND = {"cpu": 1, "cuda": 20}


@dataclass(frozen=True)
class Case:
    """What both do a step on.

    Attributes:
        words: overrides of the config file that ``FILES`` names.
        attention: of transformers' model, eager or sdpa.
        device: cpu, in fp32 where the overrides say nothing else, or cuda, in bf16.
        compiled: whether both are.
    """

    modality: str
    batch_size: int
    words: tuple[str, ...]
    strategy: str = "dense"
    attention: str = "eager"
    device: str = "cpu"
    compiled: bool = False

    def build(self) -> tuple[RunConfig, Batch]:
        precision = "bf16" if self.device == "cuda" else "fp32"
        own = (f"train.precision={precision}", f"train.compile={str(self.compiled).lower()}")
        path = CONFIGS / FILES[self.modality, self.strategy]
        return noise(path, (*own, *self.words), self.batch_size)


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


def _ours(config: RunConfig, batch: Batch) -> Action:
    """A step of the real trainer."""
    torch.manual_seed(config.seed)
    accelerator = build_accelerator(config)
    progress = Progress(config.train.steps, 0, main=False)
    trainer = Trainer(Data2Vec(config), config, accelerator, None, None, progress, {})
    loaded = Loaded(batch, [], len(batch.inputs))
    if accelerator.device.type == "cuda":
        loaded = loaded.pin_memory()  # as the loader does; else the host waits for every copy
    return lambda: trainer.step([{config.modality: loaded}])


def _theirs(config: RunConfig, batch: Batch, case: Case) -> Action:
    from todays_loop import TodaysLoop

    torch.manual_seed(config.seed)
    return TodaysLoop(config, batch, case.attention, case.device).step


def steps_of(case: Case) -> dict[str, Action]:
    config, batch = case.build()
    steps = {OURS: _ours(config, batch), THEIRS: _theirs(config, batch, case)}
    return {name: _until_done(step, case.device) for name, step in steps.items()}


def _until_done(step: Action, device: str) -> Action:
    if device == "cpu":
        return step

    def several() -> None:
        for _ in range(STEPS_PER_ROUND[device]):
            step()
        torch.cuda.synchronize()

    return several


def on_cpu() -> None:
    """On one thread of it."""
    os.environ["ACCELERATE_USE_CPU"] = "true"
    torch.set_num_threads(1)


class Times(NamedTuple):
    """Medians of each one's step, and how many times as long the other loop's is."""

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
    found = in_turns(steps, rounds, say)
    ours, theirs = found[OURS], found[THEIRS]
    processor = ratio_of([s.processor for s in theirs], [s.processor for s in ours])
    clock = ratio_of([s.clock for s in theirs], [s.clock for s in ours])
    return Times(median(ours), median(theirs), processor, clock)


def peak_megabytes(case: Case, contender: str) -> float:
    """What a process of its own grows by, in MiB."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_grown, (case, contender))


def _grown(case: Case, contender: str) -> float:
    from todays_loop import load_classes

    if case.device == "cpu":
        on_cpu()
    config, batch = case.build()
    load_classes()  # whichever is measured: code is no memory of a step
    before = _memory("VmRSS")
    step = _ours(config, batch) if contender == OURS else _theirs(config, batch, case)
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


def case_of(modality: str, options: argparse.Namespace) -> Case:
    """At the size that is compared here."""
    words: tuple[str, ...] = NO_DROPOUT if options.no_dropout else ()
    words += ("train.precision=bf16",) if options.bf16 else ()
    if options.device == "cpu":
        words += (*SIZE, *LENGTH[modality])
        words += VISIBLE[modality] if options.strategy == "visible" else ()
    attention = "sdpa" if options.sdpa else "eager"
    size = BATCH[options.device][modality]
    return Case(modality, size, words, options.strategy, attention, options.device, options.compile)


def compare(case: Case, rounds: int) -> dict[str, Any]:
    """Times and memory as plain JSON values."""

    def say(line: str) -> None:
        print(f"{case.modality}, {line}", file=sys.stderr, flush=True)

    megabytes = {name: peak_megabytes(case, name) for name in (OURS, THEIRS)}
    say(", ".join(f"{name} {value:.0f} MiB" for name, value in megabytes.items()))
    times = compare_times(steps_of(case), rounds, say)
    return {
        "case": asdict(case),
        "rounds": rounds,
        "seconds": {OURS: times.ours._asdict(), THEIRS: times.theirs._asdict()},
        "processor_ratio": times.processor._asdict(),
        "clock_ratio": times.clock._asdict(),
        "megabytes": megabytes,
        "memory_ratio": megabytes[OURS] / megabytes[THEIRS],
    }


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    lines = [
        "| | ours, CPU s | transformers, CPU s | times as fast, CPU | on the clock "
        "| ours, MiB | transformers, MiB | memory |",
        "|---" * 8 + "|",
    ]
    for modality, result in results.items():
        seconds, megabytes = result["seconds"], result["megabytes"]
        cells = [
            modality,
            f"{seconds[OURS]['processor']:.2f}",
            f"{seconds[THEIRS]['processor']:.2f}",
            str(Ratio(**result["processor_ratio"])),
            str(Ratio(**result["clock_ratio"])),
            f"{megabytes[OURS]:,.0f}",
            f"{megabytes[THEIRS]:,.0f}",
            f"{result['memory_ratio']:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    first = next(iter(results.values()))
    interval, rounds = first["processor_ratio"]["interval"], first["rounds"]
    return "\n".join([*lines, f"Medians of {rounds} rounds; in brackets {interval}."])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modalities", nargs="*", metavar="image audio text")
    parser.add_argument("--strategy", choices=("dense", "visible"), default="dense")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--no-dropout", action="store_true", help="and no drop path, no layer drop")
    parser.add_argument("--sdpa", action="store_true", help="not eager attention in transformers")
    parser.add_argument("--bf16", action="store_true", help="on a CPU, too, multiply in bf16")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    if find_spec("transformers") is None:
        sys.exit("this needs transformers: pip install 'selfdistill[test]'")
    if unknown := set(options.modalities) - set(MODALITIES):
        parser.error(f"no such modality: {', '.join(sorted(unknown))}")
    if options.device == "cpu":
        on_cpu()
    results = {}
    for modality in options.modalities or MODALITIES:
        results[modality] = compare(case_of(modality, options), options.rounds)
    print(table(results))
    packages = ("torch", "transformers", "accelerate")
    write_result(options.json, {**origin(*packages), "results": results})


if __name__ == "__main__":
    main()
