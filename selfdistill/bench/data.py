"""How many samples the data side of a run gives on this machine, and where the time goes."""

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from statistics import median
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from selfdistill.bench.machine import check_alone
from selfdistill.config import RunConfig
from selfdistill.cores import cores
from selfdistill.data.elsewhere.retries import take_retries
from selfdistill.data.ledger import Bad, all_bad, why_bad
from selfdistill.data.loader import MAX_ATTEMPTS, Source, training_batches
from selfdistill.data.order import SampleOrder
from selfdistill.data.pipeline import training_example
from selfdistill.masking import row_keys
from selfdistill.modalities.base import Modality, load_modality
from selfdistill.run_data import batch_sizes, open_source, prepared_aside
from selfdistill.types import Batch

STAGES = ("read", "decode", "transform", "collate")
TRIED = 16
"""Samples by which the others' time is judged before they are measured."""
BATCH_SECONDS = 1.0
"""Of one core. Larger batches are cut to this: it changes no speed, and a few are soon made."""
MIN_ROUNDS = 5


@dataclass
class _Round:
    """What one batch took on one core, and what it holds."""

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    samples: int = 0
    tokens: int = 0
    length: float = 0.0
    bad: list[Bad] = field(default_factory=list)

    def per_sample(self, *stages: str) -> float:
        return sum(self.seconds[stage] for stage in stages) / self.samples


def bench_data(config: RunConfig, seconds: float = 5.0) -> dict[str, Any]:
    """Measure what makes the batches of a run, stage by stage and as a whole.

    Args:
        config: checked, as ``load_config`` gives it. Nothing is written to its folder.
        seconds: to measure each modality for, and the loader; a batch is never left unfinished.

    Returns:
        Plain JSON values. Below ``modalities``, by name: ``samples``, ``shards``, ``batch`` (the
        samples of those that were measured) and ``rounds``; of one core, by stage, the ``seconds``
        of a sample, medians of rounds of a batch, and the ``share`` of them; what follows from
        their sum, ``samples_per_second``, ``tokens_per_second`` (positions of the encoder) and
        ``length_per_second`` in ``length_unit`` where the modality has one; ``bad`` samples by
        reason. Reading, which waits for the disk, is measured by the clock, all else as CPU time,
        which other programs on the machine hardly change. Below ``loader``, by the clock:
        ``workers``, ``samples_per_second`` of all modalities, ``padded_share`` of the inputs by
        modality, ``retries`` of broken connections since the data were opened. Below ``step``, in
        its full size: ``samples`` by modality, ``one_core_seconds``, ``loader_seconds``. ``cores``:
        those that this process may use.

    Raises:
        SelfdistillError: the data cannot be used.
        UserError: a launcher started this.
    """
    check_alone("bench data")
    sizes = batch_sizes(config, 1)
    with prepared_aside(config) as parts:
        whole = {name: open_source(name, parts, size) for name, size in sizes.items()}
    modalities = {name: load_modality(part.modality) for name, part in parts.items()}
    found = {}
    with _one_thread():
        sources, step = _cut(whole, modalities, config)
        for name, source in sources.items():
            rounds = list(_rounds(source, modalities[name], config.seed, seconds))
            found[name] = _summary(source, modalities[name], rounds)
    loader = _loader(sources, config, seconds)
    one_core = sum(n / found[name]["samples_per_second"] for name, n in step.items())
    return {
        "modalities": found,
        "loader": loader,
        "step": {
            "samples": step,
            "one_core_seconds": one_core,
            "loader_seconds": sum(step.values()) / loader["samples_per_second"],
        },
        "cores": cores(),
    }


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(threads)


def _cut(
    sources: Mapping[str, Source], modalities: Mapping[str, Modality], config: RunConfig
) -> tuple[dict[str, Source], dict[str, int]]:
    """The sources with micro-batches that are soon made, and the samples of a whole step."""
    step, expected = {}, 0.0
    for name, source in sources.items():
        few = Source(source.shards, source.pipeline, min(TRIED, len(source.shards)))
        tried = next(_rounds(few, modalities[name], config.seed, 0))
        mean = 1.0 if source.lengths is None else float(source.lengths.mean(dtype=np.float64))
        step[name] = source.batch_size or round(source.batch_length / mean)
        expected += step[name] * tried.per_sample(*STAGES)
    factor = min(1.0, config.train.accumulate * BATCH_SECONDS / expected)
    factor /= config.train.accumulate
    cut = {}
    for name, source in sources.items():
        longest = 0.0 if source.lengths is None else float(source.lengths.max())
        cut[name] = replace(
            source,
            batch_size=max(round(source.batch_size * factor), 1),
            batch_length=max(source.batch_length * factor, longest),
        )
    return cut, step


def _rounds(source: Source, modality: Modality, seed: int, seconds: float) -> Iterator[_Round]:
    """Batches of the run, but for the first one, which warms up, and those without a good sample,
    whose bad ones count with the next."""
    order = SampleOrder(source.shards.sizes, seed)
    plan = source.steps(order, 1)
    end, step, made = time.monotonic() + seconds, 0, 0
    bad: list[Bad] = []
    while made <= MIN_ROUNDS or time.monotonic() < end:
        positions, samples = plan.share(step, 0, 1)
        step += 1
        measured = _round(source, modality, seed, positions, samples)
        measured.bad[:0] = bad
        if measured.samples:
            if made:
                yield measured
            made, bad = made + 1, []
        elif len(measured.bad) > MAX_ATTEMPTS:
            raise all_bad(measured.bad)
        else:
            bad = measured.bad


def _round(
    source: Source, modality: Modality, seed: int, positions: np.ndarray, samples: np.ndarray
) -> _Round:
    pipeline, clock = source.pipeline, time.thread_time
    found = _Round()
    examples, kept = [], []
    for position, sample in zip(positions.tolist(), samples.tolist(), strict=True):
        began = time.perf_counter()
        key, members = source.shards.read(sample)
        read = time.perf_counter() - began
        try:
            times = [clock()]
            raw = pipeline.decode(members)
            times.append(clock())
            examples.append(training_example(pipeline, raw, seed, position))
            times.append(clock())
        except Exception as error:
            found.bad.append(why_bad(key, error))
            continue
        found.seconds["read"] += read
        found.seconds["decode"] += times[1] - times[0]
        found.seconds["transform"] += times[2] - times[1]
        kept.append(position)
        if modality.length is not None:
            found.length += min(modality.length(members), pipeline.longest)
    if examples:
        began = clock()
        batch = pipeline.collate(examples, row_keys(seed, np.array(kept, np.int64)))
        found.seconds["collate"] = clock() - began
        found.samples, found.tokens = len(examples), tokens_of(batch)
    return found


def tokens_of(batch: Batch) -> int:
    """Positions of the encoder that are no padding."""
    masks = batch.masks
    if masks is None:
        return 0
    of_all_masks = int(masks.count()) + masks.count_visible()
    return of_all_masks * len(batch.inputs) // len(masks.masked)


def _summary(source: Source, modality: Modality, rounds: list[_Round]) -> dict[str, Any]:
    spent = {stage: median(r.per_sample(stage) for r in rounds) for stage in STAGES}
    rate = 1 / sum(spent.values())
    samples = sum(r.samples for r in rounds)
    found: dict[str, Any] = {
        "samples": len(source.shards),
        "shards": len(source.shards.sizes),
        "batch": round(samples / len(rounds)),
        "rounds": len(rounds),
        "samples_per_second": rate,
        "tokens_per_second": rate * sum(r.tokens for r in rounds) / samples,
        "seconds": spent,
        "share": {stage: value / sum(spent.values()) for stage, value in spent.items()},
        "bad": dict(Counter(reason for r in rounds for _, reason, _ in r.bad)),
    }
    if modality.length is not None:
        found["length_per_second"] = rate * sum(r.length for r in rounds) / samples
        found["length_unit"] = modality.length_unit
    return found


def _loader(sources: Mapping[str, Source], config: RunConfig, seconds: float) -> dict[str, Any]:
    workers = config.data.workers
    batches = training_batches(
        sources,
        seed=config.seed,
        accumulate=1,
        rank=0,
        world_size=1,
        start_step=0,
        steps=1 << 40,
        workers=workers,
    )
    at_once = max(workers, 1)
    samples = retries = 0
    values, padding = Counter[str](), Counter[str]()
    # workers start, and hold their first batches ready
    for (micro_batch,) in islice(batches, at_once):
        retries += sum(loaded.retries for loaded in micro_batch.values())
    began = time.perf_counter()
    for count, (micro_batch,) in enumerate(batches, start=1):
        for name, loaded in micro_batch.items():
            batch = loaded.batch
            retries += loaded.retries
            samples += len(batch.inputs)
            if batch.lengths is not None:
                size = len(batch.inputs) * batch.inputs.shape[1]
                values[name] += size
                padding[name] += size - int(batch.lengths.sum())
        spent = time.perf_counter() - began
        # whole turns of the workers, or those that are ahead would count for more
        if spent >= seconds and count % at_once == 0 and count >= 2 * at_once:
            break
    return {
        "workers": workers,
        "samples_per_second": samples / spent,
        "retries": retries + take_retries(),
        "padded_share": {name: padding[name] / max(values[name], 1) for name in sources},
    }
