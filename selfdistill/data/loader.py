"""Batches for training, made in the loader's worker processes.

What a step sees depends on the seed, the step and the shards alone: not on the number of
processes, of workers, or on where a run was interrupted. What it sees of one modality does not
depend on the others either, but for their shares of the batch.
"""

import hashlib
import logging
import multiprocessing
import os
import re
import signal
import sys
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from selfdistill.data.elsewhere.retries import take_retries
from selfdistill.data.ledger import Bad, Loaded, MicroBatch, all_bad, why_bad
from selfdistill.data.order import SampleOrder
from selfdistill.data.pipeline import InputPipeline, training_example
from selfdistill.data.shards import ShardSet
from selfdistill.data.steps import ByCount, ByLength, StepPlan, data_step
from selfdistill.data.transit import Sent
from selfdistill.errors import SelfdistillError, errors_of
from selfdistill.masking import row_keys

__all__ = ["Loaded", "MicroBatch", "Source", "dead_workers_explained", "training_batches"]

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 20
"""Replacements tried for one bad sample."""
STALLED_SECONDS = 60.0
"""Without a batch, after which a warning says so. A shard that is fetched may take longer."""
HOPELESS_SECONDS = 1800.0
"""Without a batch, after which the run ends."""
ORPHAN_SECONDS = 1.0
"""After which a worker notices that the main process is gone."""
WORKERS_BEGIN = "fork" if sys.platform == "linux" else None
"""How. Python 3.14 would by itself have a server fork them, which is then their parent, and each
would import torch and hold the index of the shards for itself."""


@dataclass(frozen=True)
class Source:
    """Where the samples of one modality come from.

    Attributes:
        shards, pipeline: of the modality.
        batch_size: its samples per step over all processes and micro-batches.
        batch_length: their length in place of ``batch_size``; 0: ``batch_size`` counts.
        lengths: float32 [n], of the samples after cropping, where ``batch_length`` counts.
    """

    shards: ShardSet
    pipeline: InputPipeline
    batch_size: int
    batch_length: float = 0.0
    lengths: np.ndarray | None = None

    def steps(self, order: SampleOrder, parts: int) -> StepPlan:
        """What belongs to each step, for ``parts`` micro-batches over all processes."""
        if self.lengths is None:
            return ByCount(order, self.batch_size)
        return ByLength(order, self.lengths, self.batch_length, parts)

    def fingerprint(self) -> dict[str, Any]:
        """What tells the samples and their order from others without reading them; plain JSON
        values. ``keys`` stand apart, because checkpoints of earlier versions have none.

        Recordings that were cut to one length, packed in another order, differ in their keys only.
        """
        digest = hashlib.sha256("\0".join(self.shards.names).encode())
        digest.update(np.array(self.shards.sizes, np.int64).tobytes())
        for index in self.shards.indexes:
            digest.update(index.members["size"].astype(np.int64).tobytes())
        if self.lengths is not None:
            digest.update(self.lengths.tobytes())
        keys = hashlib.sha256()
        for index in self.shards.indexes:
            keys.update(index.name_ends.tobytes())
            keys.update(index.names.tobytes())
        sizes = {"shards": len(self.shards.sizes), "samples": len(self.shards)}
        return {**sizes, "sha256": digest.hexdigest(), "keys": keys.hexdigest()}


@dataclass(frozen=True)
class _Stream:
    """The samples of one modality in the order of the run."""

    source: Source
    order: SampleOrder
    steps: StepPlan
    seed: int
    ahead: SampleOrder | None
    """The order once more, to look into without losing the place in it; None: all shards are here,
    and none has to be fetched ahead."""

    def load(self, step: int, part: int, parts: int) -> Loaded:
        """Micro-batch ``part`` out of ``parts`` of a step."""
        positions, samples = self.steps.share(step, part, parts)
        places = (positions.tolist(), samples.tolist())
        bad: list[Bad] = []
        found = [self._example(*place, bad) for place in zip(*places, strict=True)]
        keys = [key for key, _ in found]
        examples = [example for _, example in found]
        batch = self.source.pipeline.collate(examples, row_keys(self.seed, positions), keys)
        if self.ahead is not None:
            self.source.shards.prefetch(self.ahead.in_next_shard(int(positions.max())))
        return Loaded(batch, bad, len(found) + len(bad), take_retries())

    def _example(self, position: int, sample: int, bad: list[Bad]) -> tuple[str, np.ndarray]:
        pipeline, before = self.source.pipeline, len(bad)
        for attempt in range(MAX_ATTEMPTS + 1):
            i = self.order.replacement(position, attempt) if attempt else sample
            key, members = self.source.shards.read(i)
            try:
                raw = pipeline.decode(members)
                return key, training_example(pipeline, raw, self.seed, position)
            except Exception as error:
                bad.append(why_bad(key, error))
        raise all_bad(bad[before:])


@dataclass(frozen=True)
class _Plan:
    """Which micro-batches this process makes, and from what."""

    streams: Mapping[str, _Stream]
    accumulate: int
    rank: int
    world_size: int

    def step(self, step: int) -> list[MicroBatch]:
        return [self._micro_batch(step, number) for number in range(self.accumulate)]

    def _micro_batch(self, step: int, number: int) -> MicroBatch:
        part = self.rank * self.accumulate + number
        loaded = {}
        for name, stream in self.streams.items():
            with errors_of(name, self.streams):
                loaded[name] = stream.load(step, part, self.accumulate * self.world_size)
        return loaded


class _Steps(IterableDataset[list[MicroBatch] | Sent | SelfdistillError]):
    """Steps ``start``..``stop - 1`` of training, every W-th for each of W workers.

    An error that ends the run travels as a value, because the DataLoader would bury its one line
    in a traceback.
    """

    def __init__(self, plan: _Plan, start: int, stop: int, passed_over: Sequence[int]) -> None:
        self.plan, self.start, self.stop, self.passed_over = plan, start, stop, passed_over

    def __iter__(self) -> Iterator[list[MicroBatch] | Sent | SelfdistillError]:
        worker = torch.utils.data.get_worker_info()
        first, stride = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for step in range(self.start + first, self.stop, stride):
            try:
                made = self.plan.step(data_step(step, self.passed_over))
                yield made if worker is None else Sent(made)
            except SelfdistillError as error:
                yield error
                return


def _unchanged(value: Any) -> Any:
    return value


def _leave_signals_to_the_main_process(worker: int) -> None:
    """A batch system, or a terminal that is closed, signals every process, but the main one needs
    its data to stop in order.

    Only the main process itself may end a worker, which torch does when one hangs. SIGTERM is
    blocked there from the first (``_begun``).
    """
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    main = multiprocessing.parent_process()
    if main is None or not hasattr(signal, "sigtimedwait"):  # macOS does not tell the sender
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        return

    def wait_for_main() -> None:
        while os.getppid() == main.pid:
            # where main was killed, nobody reads what this process has still to send
            received = signal.sigtimedwait({signal.SIGTERM}, ORPHAN_SECONDS)
            if received is not None and received.si_pid == main.pid:
                break
        os._exit(0)

    threading.Thread(target=wait_for_main, daemon=True).start()


def _begun(loader: DataLoader[Any]) -> Iterator[Any]:
    """Its batches; the workers are born with SIGTERM blocked.

    Libraries may have threads there before anything of ours runs, and a single one that lets the
    signal through is the end of its process.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        return iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def dead_workers_explained() -> Iterator[None]:
    """Say what to do when a data worker was killed.

    torch raises from a signal handler, that is anywhere in the main thread: put the whole training
    loop inside.

    Raises:
        SelfdistillError: a worker died.
    """
    try:
        yield
    except RuntimeError as error:
        if not re.search(r"DataLoader worker \(pid", str(error)):
            raise
        raise SelfdistillError(
            f"a data worker died ({str(error).splitlines()[0]}), probably because memory "
            "(or shared memory, /dev/shm) ran out: lower data.workers or train.batch_size"
        ) from error


def training_batches(
    sources: Mapping[str, Source],
    *,
    seed: int,
    accumulate: int,
    rank: int,
    world_size: int,
    start_step: int,
    steps: int,
    workers: int,
    passed_over: Sequence[int] = (),
) -> Generator[list[MicroBatch]]:
    """The micro-batches of each optimiser step, from ``start_step`` to ``steps - 1``.

    Each process has a contiguous slice of a step's samples, and each micro-batch of that.

    Args:
        sources: by modality; their batches can be divided evenly, see ``split_batch``.
        accumulate: micro-batches per step and process.
        workers: loader processes; 0: decode in this one. The batches are the same.
        passed_over: see ``data_step``.

    Raises:
        DataBudgetError: a bad sample could not be replaced, because all are bad.
        SelfdistillError: a data worker died, or a shard changed.
    """
    streams = {}
    for name, source in sources.items():
        order = SampleOrder(source.shards.sizes, seed)
        with errors_of(name, sources):
            plan = source.steps(order, accumulate * world_size)
        ahead = None if source.shards.is_here else SampleOrder(source.shards.sizes, seed)
        streams[name] = _Stream(source, order, plan, seed, ahead)
    share = _Plan(streams, accumulate, rank, world_size)
    return _load(_Steps(share, start_step, steps, passed_over), workers)


def _load(steps: _Steps, workers: int) -> Generator[list[MicroBatch]]:
    loader = DataLoader(
        steps,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=2 if workers else None,
        multiprocessing_context=WORKERS_BEGIN if workers else None,
        timeout=STALLED_SECONDS if workers else 0,
        collate_fn=_unchanged,
        worker_init_fn=_leave_signals_to_the_main_process,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # else it draws from the generator that dropout uses
    )
    with dead_workers_explained():
        for loaded in _watched(_begun(loader)):
            if isinstance(loaded, SelfdistillError):
                raise loaded
            yield loaded


def _watched(batches: Iterator[Any]) -> Iterator[Any]:
    """The same; says so while nothing comes, and gives up in the end."""
    waited = 0.0
    while True:
        try:
            loaded = next(batches)
        except StopIteration:
            return
        except RuntimeError as error:
            if "timed out" not in str(error):
                raise
            waited += STALLED_SECONDS
            if waited >= HOPELESS_SECONDS:
                raise SelfdistillError(
                    f"the data workers made no batch in {waited:.0f} s: see whether the storage of "
                    "data.train answers, and run the same command again"
                ) from error
            logger.warning("the data workers have made no batch for %.0f s", waited)
        else:
            waited = 0.0
            yield loaded
