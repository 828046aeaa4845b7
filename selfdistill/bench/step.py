"""What a machine gives for the training of a config, where the time goes, and what bounds it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from selfdistill.bench.flops import RECOMPUTED, counted_flops, step_flops
from selfdistill.bench.machine import description, matmul_rate
from selfdistill.bench.profile import ENDINGS, profile_steps, write_trace
from selfdistill.bench.timing import Timing, enough_steps, time_steps, warm_up
from selfdistill.bench.trace import shares
from selfdistill.bench.verdict import DATA_WAIT, Step, verdict
from selfdistill.bench.workload import Workload, workload
from selfdistill.config import RunConfig
from selfdistill.cores import cores
from selfdistill.data.loader import Source
from selfdistill.engine.contention import Contention
from selfdistill.errors import BadSample, UserError
from selfdistill.modalities.base import load_modality
from selfdistill.outputs import check_output, say

LENGTHS = 256
"""Samples whose lengths are looked up."""


def bench_step(
    config: RunConfig, steps: int | None = None, trace: Path | None = None
) -> dict[str, Any] | None:
    """Measure whole steps of training, as ``pretrain`` takes them.

    Args:
        config: checked, as ``load_config`` gives it. Nothing is written to its folder.
        steps: to measure; None: as many as take some ten seconds.
        trace: the file for a profiler's trace; None: none is kept.

    Returns:
        None on processes other than the main one. Else plain JSON values, of all processes together
        where nothing else is said. ``machine``: device, threads, precision, versions.
        ``batch_size``. ``steps`` that were measured. ``step_seconds``: ``median``, ``p10``, ``p90``
        and ``mean``. ``samples_per_second``. Below ``modalities``, by name: ``samples``,
        ``samples_per_second``, ``tokens_per_second`` (positions of the encoder that are no padding)
        and, where the modality has one, ``length_per_second`` in ``length_unit``. ``shares`` of the
        main process's step, by part: ``data wait`` is the time by the clock in which the step
        waits for the loader; the others come from a few steps under a profiler, scaled to what is
        left. ``memory``: peak bytes (``machine.peak_memory``). ``flops`` of a step: ``by_part``,
        ``model`` (without what is ``recomputed`` in the backward pass), ``counted`` by torch on one
        step of the main process, without layer drop and drop path, and the ``deviation`` of the
        formulas from it.
        ``matmul``: see ``machine.matmul_rate``. ``use``: the model's operations per second over
        that rate. ``half_speedup``: how many times as fast such products are in bf16, 1 for a run
        that multiplies in half precision. ``left_out`` steps. ``verdict``.

    Raises:
        SelfdistillError: training could not begin, or memory is short.
    """
    check_steps(steps)
    if trace is not None:
        check_output(trace, "--profile", ENDINGS)
    with workload(config) as work:
        say = _speaker(work)
        say("warming up")
        seconds = warm_up(work)
        steps = steps or enough_steps(seconds)
        say(f"measuring {steps} steps of about {1000 * seconds:,.1f} ms")
        contention = Contention(work.accelerator.device)
        timing = time_steps(work, steps)
        for sign in contention.signs():
            say(sign)
        say("profiling")
        profiled = profile_steps(work)
        say("counting operations")
        flops = _flops(work, timing)
        say("multiplying matrices")
        machine = description(work.accelerator)
        matmul = matmul_rate(work.accelerator, machine["precision"])
        half = matmul_rate(work.accelerator, "bf16") if machine["precision"] == "fp32" else matmul
        if profiled is None:
            return None
        if trace is not None:
            write_trace(profiled, trace)
            say(f"trace written to {trace}")
        result = {"machine": machine, **throughput(work, timing)}
        result["shares"] = _shares(timing, profiled, machine["device_type"] == "cuda")
        result |= {"flops": flops, "matmul": matmul, "left_out": work.left_out()}
    result["half_speedup"] = half["flops_per_second"] / matmul["flops_per_second"]
    result["use"] = flops["model"] / result["step_seconds"]["mean"] / matmul["flops_per_second"]
    result["verdict"] = verdict(
        Step(
            shares=result["shares"],
            use=result["use"],
            half_speedup=result["half_speedup"],
            on_gpu=machine["device_type"] == "cuda",
            workers=config.data.workers,
            cores=cores(),
        )
    )
    return result


def check_steps(steps: int | None) -> None:
    """
    Raises:
        UserError: that cannot be measured.
    """
    if steps is not None and steps < 1:
        raise UserError(f"--steps: {steps} must be 1 or more; leave it out for some ten seconds")


def throughput(work: Workload, timing: Timing) -> dict[str, Any]:
    """What can be said of measured steps alone; see ``bench_step``."""
    median, low, high = timing.spread()
    found: dict[str, dict[str, Any]] = {}
    for name, source in work.sources.items():
        rate = timing.samples[name] / timing.total
        found[name] = {
            "samples": timing.samples[name] / len(timing.steps),
            "samples_per_second": rate,
            "tokens_per_second": timing.tokens[name] / timing.total,
        }
        modality = load_modality(work.parts[name].modality)
        if modality.length is not None:
            found[name]["length_per_second"] = rate * _mean_length(source, modality.length)
            found[name]["length_unit"] = modality.length_unit
    return {
        "batch_size": round(sum(timing.samples.values()) / len(timing.steps)),
        "steps": len(timing.steps),
        "step_seconds": {
            "median": median,
            "p10": low,
            "p90": high,
            "mean": timing.total / len(timing.steps),
        },
        "samples_per_second": sum(timing.samples.values()) / timing.total,
        "modalities": found,
        "memory": timing.memory,
    }


def _speaker(work: Workload) -> Callable[[str], None]:
    """Tells on stderr what comes next, on the main process."""

    return say if work.accelerator.is_main_process else lambda _: None


def _mean_length(source: Source, length: Callable[..., float]) -> float:
    """Of the samples after cropping, in the modality's unit."""
    if source.lengths is not None:
        return float(source.lengths.mean(dtype=np.float64))
    found = []
    count = len(source.shards)
    for i in np.unique(np.linspace(0, count - 1, min(count, LENGTHS)).astype(int)).tolist():
        _, members = source.shards.read(i)
        try:
            found.append(min(length(members), source.pipeline.longest))
        except BadSample:
            continue
    return sum(found) / max(len(found), 1)


def _flops(work: Workload, timing: Timing) -> dict[str, Any]:
    micro_batches = work.fetch()
    # the formulas know the mean over many steps, from which one step with drops is far away
    parts = work.without_drops()
    counted = counted_flops(lambda: work.step(micro_batches))
    by_formula = sum(step_flops(parts, work.counts(micro_batches)).values())
    by_part = {part: value / len(timing.steps) for part, value in timing.flops.items()}
    recomputed = by_part.get(RECOMPUTED, 0.0)
    return {
        "by_part": by_part,
        "model": sum(by_part.values()) - recomputed,
        "recomputed": recomputed,
        "counted": counted,
        "deviation": by_formula / counted - 1,
    }


def _shares(timing: Timing, profiled: dict[str, Any], on_gpu: bool) -> dict[str, float]:
    waiting = sum(timing.waits) / timing.total
    others = shares(profiled["traceEvents"], on_gpu)
    return {DATA_WAIT: waiting} | {part: (1 - waiting) * s for part, s in others.items()}
