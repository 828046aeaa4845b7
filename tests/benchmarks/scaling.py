"""Time and peak memory of a training step against batch, masks per sample and length.

    python tests/benchmarks/scaling.py CONFIG [--rounds 5] [--json FILE] [key=value ...]

Each grows sixteenfold in doublings while the others stand still; images have one length only. The
step is ``Trainer.step`` on noise, with a small model unless words behind the config say otherwise,
and without layer drop. The sizes take turns, and of each the median processor time of one thread
counts. A line is fitted, time = a + b n, with equal relative errors: a is what a step costs
whatever its size, such as optimiser and teacher's average, and b what one more costs. Where a is
small, a doubling of n is to double the time; in length it does more, as attention grows by the
square. Memory is that of the tensors alive, at the peak, as in ``memory.py``: weights, optimiser
and teacher are in its a.
"""

import argparse
import gc
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from measuring import in_turns, median, origin, write_result
from memory import Peak
from side_by_side import noise, on_cpu, our_step

from selfdistill.config_files.load import load_config
from selfdistill.modalities.base import load_modality

SMALL = (
    "model.width=256",
    "model.heads=4",
    "model.depth=4",
    "model.layer_drop=0",
    "objective.average_top_k_layers=3",
    "decoder.width=128",
)
CONVS = ",".join(["[128,10,5]", *["[128,3,2]"] * 4, *["[128,2,2]"] * 2])
OWN: dict[str, tuple[str, ...]] = {
    "audio": (f"encoder.conv_layers=[{CONVS}]", "input.min_seconds=0"),
    "image": (),
    "text": ("encoder.vocab_size=5000",),
}
TIMES = (2, 4, 8, 16, 32)
LENGTH = {"audio": ("input.max_seconds", 0.5, 2), "text": ("input.max_tokens", 16, 128)}
"""Key, unit of the axis of length, and what stands still on the others."""
BATCH = {"masks": 2, "length": 4}
"""Samples, where these grow."""


class Size(NamedTuple):
    """A point of an axis.

    Attributes:
        n: of what grows.
        batch: samples.
        words: overrides of the config.
    """

    n: int
    batch: int
    words: tuple[str, ...]


class Line(NamedTuple):
    """a + b n."""

    a: float
    b: float


def axes(modality: str) -> dict[str, list[Size]]:
    key, unit, usual = LENGTH.get(modality, ("", 0, 0))
    still = (f"{key}={usual}",) if key else ()
    found = {
        "batch": [Size(n, n, still) for n in TIMES],
        "masks": [Size(n, BATCH["masks"], (*still, f"mask.num_masks={n}")) for n in TIMES],
    }
    if key:
        lengths = [int(n * unit) for n in TIMES]
        found["length"] = [Size(n, BATCH["length"], (f"{key}={n}",)) for n in lengths]
    return found


def fitted(n: list[int], values: list[float]) -> Line:
    """The line with the least squares of relative errors."""
    b, a = np.polyfit(n, values, 1, w=1 / np.array(values))
    return Line(float(a), float(b))


def doublings(values: list[float]) -> list[float]:
    return [after / before for before, after in pairwise(values)]


def seconds_of(path: Path, words: tuple[str, ...], sizes: list[Size], rounds: int) -> list[float]:
    steps = {str(s.n): our_step(*noise(path, (*words, *s.words), s.batch)) for s in sizes}
    found = in_turns(steps, rounds, partial(print, flush=True))
    return [median(values).processor for values in found.values()]


def peak_megabytes(path: Path, words: tuple[str, ...], size: Size) -> float:
    """Over two steps: the first makes the optimiser's state."""
    config, batch = noise(path, (*words, *size.words), size.batch)
    gc.collect()
    with Peak() as counter:
        step = our_step(config, batch)
        step()
        step()
    return counter.most / 2**20


def measured(path: Path, words: tuple[str, ...], sizes: list[Size], rounds: int) -> dict[str, Any]:
    """An axis as plain JSON values."""
    n = [size.n for size in sizes]
    values = {
        "seconds": seconds_of(path, words, sizes, rounds),
        "megabytes": [peak_megabytes(path, words, size) for size in sizes],
    }
    return {
        "n": n,
        **{
            name: {"values": each, "doublings": doublings(each), **fitted(n, each)._asdict()}
            for name, each in values.items()
        },
    }


def show(axis: str, found: dict[str, Any]) -> None:
    print(f"\n| {axis} | {' | '.join(map(str, found['n']))} | a | b |")
    print("|---" * (len(found["n"]) + 3) + "|")
    for name, unit, factor in (("seconds", "CPU ms", 1e3), ("megabytes", "MiB", 1.0)):
        part = found[name]
        cells = [f"{factor * v:,.0f}" for v in part["values"]]
        fit = [f"{factor * part['a']:,.1f}", f"{factor * part['b']:,.2f}"]
        print(f"| {unit} | {' | '.join([*cells, *fit])} |")
        ratios = ["", *(f"{ratio:.2f}" for ratio in part["doublings"]), "", ""]
        print(f"| times the one before | {' | '.join(ratios)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_intermixed_args()
    on_cpu()
    modality = load_config(options.config, ["run_dir=unused"], load_modality).modality
    words = (*SMALL, *OWN[modality], *options.overrides)
    results = {}
    for axis, sizes in axes(modality).items():
        print(f"\n{axis}", flush=True)
        results[axis] = measured(options.config, words, sizes, options.rounds)
    for axis, found in results.items():
        show(axis, found)
    write_result(options.json, {**origin("torch", "accelerate"), "results": results})


if __name__ == "__main__":
    main()
