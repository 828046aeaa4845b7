"""How long the steps of a workload take, and what they hold."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import quantiles

import torch

from selfdistill.bench.data import tokens_of
from selfdistill.bench.flops import step_flops
from selfdistill.bench.machine import peak_memory
from selfdistill.bench.workload import Workload
from selfdistill.engine.sums import over_processes
from selfdistill.models.flops import Counts

WARM_UP = 3
"""Steps, beside those whose batches the loader had ready when it began."""
WARM_UP_SECONDS = 30.0
"""After which no further step warms up."""
SECONDS = 10.0
"""That the measured steps take together, where their number is not given."""
MIN_STEPS, MAX_STEPS = 10, 200


class Stopwatch:
    """Takes times where the device is: a GPU runs behind the host.

    What lies between two marks is what passed there between the work that was sent to it before
    the one and before the other.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._times: list[float] = []
        self._events: list[torch.cuda.Event] = []

    def mark(self) -> None:
        """Take the time."""
        if self._on_gpu:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._events.append(event)
        else:
            self._times.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Between each mark and the next."""
        if self._on_gpu:
            self._events[-1].synchronize()
            pairs = zip(self._events, self._events[1:], strict=False)
            return [first.elapsed_time(second) / 1000 for first, second in pairs]
        return [b - a for a, b in zip(self._times, self._times[1:], strict=False)]


@dataclass(frozen=True)
class Timing:
    """Of all processes together, but for the times, which are the main one's.

    Attributes:
        steps: seconds of each.
        waits: seconds of each in which nothing was done because the loader had no batch.
        samples, tokens: of all steps, by modality; tokens are those that are no padding.
        flops: of all steps, by part.
        memory: peak bytes by what they are, of the process that needed most.
    """

    steps: list[float]
    waits: list[float]
    samples: dict[str, float]
    tokens: dict[str, float]
    flops: dict[str, float]
    memory: dict[str, int]

    @property
    def total(self) -> float:
        """Seconds of all steps."""
        return sum(self.steps)

    def spread(self) -> tuple[float, float, float]:
        """Median, 10th and 90th percentile of a step's seconds."""
        if len(self.steps) == 1:
            return (self.steps[0],) * 3
        tenths = quantiles(self.steps, n=10, method="inclusive")
        return tenths[4], tenths[0], tenths[8]


def warm_up(work: Workload) -> float:
    """Take the first steps, which are slower; returns the seconds of the last one."""
    workers = max(part.data.workers for part in work.parts.values())
    began = last = time.perf_counter()
    seconds = 0.0
    for number in range(WARM_UP + 2 * workers):
        work.step(work.fetch())
        work.finish()
        now = time.perf_counter()
        seconds, last = now - last, now
        spent = over_processes([now - began], work.accelerator)[0]
        if number >= WARM_UP - 1 and spent > WARM_UP_SECONDS * work.accelerator.num_processes:
            break
    return over_processes([seconds], work.accelerator)[0] / work.accelerator.num_processes


def enough_steps(seconds: float) -> int:
    """How many to measure when one takes so many seconds."""
    return int(min(max(SECONDS / seconds, MIN_STEPS), MAX_STEPS))


def time_steps(work: Workload, steps: int) -> Timing:
    """Take so many steps, one after the other as in training."""
    watch = Stopwatch(work.accelerator.device)
    counts: list[list[dict[str, Counts]]] = []
    samples = dict.fromkeys(work.parts, 0.0)
    tokens = dict.fromkeys(work.parts, 0.0)
    for _ in range(steps):
        watch.mark()
        micro_batches = work.fetch()
        watch.mark()
        work.step(micro_batches)
        for micro_batch in micro_batches:
            for name, loaded in micro_batch.items():
                samples[name] += len(loaded.batch.inputs)
                tokens[name] += tokens_of(loaded.batch)
        counts.append(work.counts(micro_batches))
    watch.mark()
    work.finish()
    between = watch.seconds()
    flops = _added([step_flops(work.parts, of_step) for of_step in counts])
    return Timing(
        steps=[a + b for a, b in zip(between[::2], between[1::2], strict=True)],
        waits=between[::2],
        samples=_summed(samples, work),
        tokens=_summed(tokens, work),
        flops=_summed(flops, work),
        memory=peak_memory(work.accelerator),
    )


def _added(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {key: sum(one[key] for one in found) for key in found[0]}


def _summed(values: Mapping[str, float], work: Workload) -> dict[str, float]:
    """Over all processes."""
    summed = over_processes([*values.values()], work.accelerator)
    return dict(zip(values, summed, strict=True))
