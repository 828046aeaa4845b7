"""What the benchmarks share: time on the clock and of the processor, turns, ratios, results.

Other programs on the machine hardly change processor time, and what they do change hits contenders
that take turns alike, so what is compared are ratios within a round.
"""

import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

Action = Callable[[], object]
RESAMPLES = 10_000
FEWEST_FOR_BOOTSTRAP = 6


class Seconds(NamedTuple):
    """On the clock, and of processor time in all threads."""

    clock: float
    processor: float

    def __sub__(self, other: "Seconds") -> "Seconds":
        return Seconds(self.clock - other.clock, self.processor - other.processor)

    def __mul__(self, times: object) -> "Seconds":
        assert isinstance(times, int)
        return Seconds(self.clock * times, self.processor * times)

    def __str__(self) -> str:
        return f"{self.clock:.2f} s (processor {self.processor:.2f} s)"


def now() -> Seconds:
    return Seconds(time.monotonic(), time.process_time())


def taken(action: Action) -> Seconds:
    began = now()
    action()
    return now() - began


def median(values: Sequence[Seconds]) -> Seconds:
    return Seconds(*map(statistics.median, zip(*values, strict=True)))


def in_turns(
    contenders: Mapping[str, Action], rounds: int, say: Callable[[str], object] = lambda line: None
) -> dict[str, list[Seconds]]:
    """Each one's time in every round, after one that warms up; the order turns round each time.

    Args:
        contenders: by name.
        rounds: that count.
        say: is given a line for each round.
    """
    found: dict[str, list[Seconds]] = {name: [] for name in contenders}
    for action in contenders.values():
        action()
    for number in range(rounds):
        for name in contenders if number % 2 == 0 else reversed(list(contenders)):
            found[name].append(taken(contenders[name]))
        times = ", ".join(f"{name} {values[-1]}" for name, values in found.items())
        say(f"round {number + 1} of {rounds}: {times}")
    return found


class Ratio(NamedTuple):
    """The median of the rounds' ratios.

    Attributes:
        low, high: of ``interval``.
        interval: "95 % bootstrap", over the rounds, or "min to max" where these are few.
    """

    median: float
    low: float
    high: float
    interval: str

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


def ratio_of(above: Sequence[float], below: Sequence[float]) -> Ratio:
    """``above`` over ``below``, round by round."""
    ratios = np.divide(above, below)
    middle = float(np.median(ratios))
    if len(ratios) < FEWEST_FOR_BOOTSTRAP:
        return Ratio(middle, float(ratios.min()), float(ratios.max()), "min to max")
    drawn = np.random.default_rng(0).choice(ratios, (RESAMPLES, len(ratios)))
    low, high = np.quantile(np.median(drawn, axis=1), (0.025, 0.975))
    return Ratio(middle, float(low), float(high), "95 % bootstrap")


def origin(*packages: str) -> dict[str, Any]:
    """What a result was measured with: command, date, versions of ``packages``, and device."""
    # not above: what is measured may be a process that has none of it
    import selfdistill
    from selfdistill.bench.machine import processor

    words = sys.argv[1:]
    if "--json" in words:  # where a result goes says nothing of it
        place = words.index("--json")
        del words[place : place + 2]
    script = f"tests/benchmarks/{Path(sys.argv[0]).name}"
    return {
        "command": shlex.join(["python", script, *words]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in packages},
            "selfdistill": selfdistill.__version__,
        },
        "device": {
            "processor": processor(),
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
        },
    }


def write_result(path: Path | None, result: Mapping[str, Any]) -> None:
    if path is not None:
        path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
