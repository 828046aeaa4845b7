"""The same for one batch size after the other, till the machine has had enough."""

import multiprocessing
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any

from selfdistill.bench.machine import check_alone, description, free_memory
from selfdistill.bench.step import check_steps, throughput
from selfdistill.bench.timing import enough_steps, time_steps, warm_up
from selfdistill.bench.workload import DoesNotFit, workload
from selfdistill.child_process import obey_parent
from selfdistill.config import RunConfig
from selfdistill.errors import SelfdistillError, UserError
from selfdistill.outputs import say
from selfdistill.redaction import log_to_console, redacted
from selfdistill.run_data import batch_sizes

HALVED = 3
"""Times that the config's batch size is halved to begin with, as far as it can be."""
GAIN = 1.03
"""Growth of samples per second below which a larger batch is in vain."""
VAIN = 2
"""Sizes in a row that are in vain, after which a CPU has had enough; a GPU goes on till it is
full."""
LARGEST_SHARE = 0.8
"""Of the host's memory that is free beside the last step, what the next one may be expected to
take more."""
LONGEST_STEP = 60.0
"""Seconds, above which no larger batch is tried."""


def sweep_batch(config: RunConfig, steps: int | None = None) -> dict[str, Any]:
    """Measure steps of growing ``train.batch_size``, each in a process of its own.

    Args:
        config: checked; the series doubles, from an eighth of its batch size on if that can be.
        steps: to measure of each; None: as many as take some ten seconds.

    Returns:
        Plain JSON values. ``machine``, see ``bench_step``. ``sizes``: what ``step.throughput`` says
        of each that fits, ascending. ``fastest`` and ``largest`` of the batch sizes. ``ended``: why
        no larger one was tried.

    Raises:
        UserError: something else says how large a batch is, or a launcher started this.
        DoesNotFit: not even the smallest one fits.
    """
    check_alone("--sweep")
    check_steps(steps)
    _check(config)
    found: list[dict[str, Any]] = []
    for size in _sizes(config):
        say(f"measuring train.batch_size={size}")
        sized = replace(config, train=replace(config.train, batch_size=size))
        try:
            found.append(_in_a_process(sized, steps))
            say(f"{found[-1]['samples_per_second']:,.1f} samples/s")
        except DoesNotFit:
            if not found:
                raise
            ended = f"{size:,} samples do not fit into memory"
            break
        if ended := why_enough(found, free_memory()):
            break
    fastest = max(found, key=lambda one: one["samples_per_second"])
    machines = [one.pop("machine") for one in found]
    return {
        "machine": machines[0],
        "sizes": found,
        "fastest": fastest["batch_size"],
        "largest": found[-1]["batch_size"],
        "ended": ended,
    }


def _check(config: RunConfig) -> None:
    if config.train.accumulate > 1:
        raise UserError(
            f"train.accumulate: {config.train.accumulate}, but --sweep batch looks for the largest "
            "batch that fits without it; set train.accumulate=1"
        )
    for part in config.parts().values():
        if part.data.batch_length:
            raise UserError(
                f"data.batch_length: {part.data.batch_length:g} says how large a batch is, and "
                "train.batch_size does not; set data.batch_length=0 for --sweep batch"
            )


def _sizes(config: RunConfig) -> Iterator[int]:
    size, parts = config.train.batch_size, batch_sizes(config, 1).values()
    halved = next((n for n in range(HALVED) if any((part >> n) % 2 for part in parts)), HALVED)
    size >>= halved
    while True:
        yield size
        size *= 2


def why_enough(found: Sequence[dict[str, Any]], free: int | None) -> str:
    """Why no larger batch should be tried than the last of those ``found``; empty: one should.

    Args:
        found: results of ``throughput``, each of twice the batch of the one before, and their
            ``machine``.
        free: bytes of the host's memory while none runs; None: it is not known.
    """
    last = found[-1]
    if last["step_seconds"]["median"] > LONGEST_STEP:
        return f"a step takes {last['step_seconds']['median']:,.0f} s"
    if last["machine"]["device_type"] == "cuda":
        return ""
    rates = [one["samples_per_second"] for one in found]
    if len(rates) > VAIN and max(rates[-VAIN:]) < GAIN * max(rates[:-VAIN]):
        return f"the last {VAIN} sizes gave no more samples/s than those before"
    if free is not None and len(found) > 1:
        now, before = (one["memory"]["resident"] for one in (last, found[-2]))
        expected = now + 2 * (now - before)
        if expected > LARGEST_SHARE * free:
            return (
                f"the next size would need about {expected / 1e9:,.1f} GB, and {free / 1e9:,.1f} "
                "are free"
            )
    return ""


def _in_a_process(config: RunConfig, steps: int | None) -> dict[str, Any]:
    """A new one, because memory that was short once, or taken, is not always given back."""
    context = multiprocessing.get_context("spawn")  # a GPU cannot be used in a fork
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(config, steps, theirs))
    # it begins with Ctrl-C blocked, for its imports; this process gets it when it may again. What
    # Python starts beside the first process would end that, and is started before
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    process.start()
    theirs.close()
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        found = ours.recv()
    except KeyboardInterrupt:
        process.terminate()
        raise
    except EOFError:
        process.join()
        if process.exitcode == -signal.SIGKILL:
            raise DoesNotFit(
                f"train.batch_size: {config.train.batch_size} samples do not fit into memory (the "
                "system ended the process); lower it"
            ) from None
        raise SelfdistillError(
            f"the process for train.batch_size={config.train.batch_size} has failed; look for what "
            "it said last"
        ) from None
    finally:
        ours.close()
        process.join()
    if isinstance(found, SelfdistillError):
        raise found
    result: dict[str, Any] = found
    return result


def _measure(config: RunConfig, steps: int | None, results: Connection) -> None:
    obey_parent()
    log_to_console()
    try:
        with workload(config) as work:
            seconds = warm_up(work)
            timing = time_steps(work, steps or enough_steps(seconds))
            machine = description(work.accelerator)
            found = {"machine": machine, **throughput(work, timing)}
        results.send(found)
    except SelfdistillError as error:
        results.send(error)
    except Exception:
        print(redacted(traceback.format_exc()), file=sys.stderr, end="")
