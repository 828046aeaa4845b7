"""The data of a run, for training, and for commands that look at them without it."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from accelerate import Accelerator

from selfdistill.config import RunConfig
from selfdistill.data.elsewhere.address import Access, Remote
from selfdistill.data.loader import MicroBatch, Source, training_batches
from selfdistill.data.locations import Location, resolve
from selfdistill.data.shard import UnusableShard
from selfdistill.data.shards import training_shards
from selfdistill.data.shares import split_batch
from selfdistill.durable import write_atomically
from selfdistill.errors import UserError, errors_of
from selfdistill.modalities.base import Modality, load_modality


def batch_sizes(config: RunConfig, processes: int) -> dict[str, int]:
    """Samples of each modality in a step; 0 where ``data.batch_length`` says how many."""
    parts, train = config.parts(), config.train
    by_count = {n: p.data.sampling_weight for n, p in parts.items() if not p.data.batch_length}
    sizes = dict.fromkeys(parts, 0)
    if by_count:
        sizes |= split_batch(train.batch_size, by_count, train.accumulate, processes)
    return sizes


def open_source(name: str, parts: Mapping[str, RunConfig], batch_size: int) -> Source:
    """The samples of one of the ``parts`` of a run, which is prepared.

    Args:
        batch_size: see ``batch_sizes``.

    Raises:
        UserError: the shards cannot be used, or samples have no length to make batches by.
    """
    config = parts[name]
    modality = load_modality(config.modality)
    pipeline = modality.build_pipeline(config)
    with errors_of(name, parts):
        shards = training_shards(config.data, pipeline.extensions)
        if not config.data.batch_length:
            return Source(shards, pipeline, batch_size)
        if modality.length is None:
            raise UserError(
                f"data.batch_length: {config.data.batch_length}, but samples of {name} have no "
                "length of their own; leave it at 0"
            )
        lengths = np.minimum(shards.lengths(modality.length), np.float32(pipeline.longest))
    return Source(shards, pipeline, 0, config.data.batch_length, lengths)


def load_batches(
    config: RunConfig,
    sources: Mapping[str, Source],
    accelerator: Accelerator,
    start_step: int = 0,
    passed_over: Sequence[int] = (),
) -> Generator[list[MicroBatch]]:
    """This process's micro-batches of each step of a run; see ``training_batches``."""
    return training_batches(
        sources,
        seed=config.seed,
        accumulate=config.train.accumulate,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        start_step=start_step,
        steps=config.train.steps,
        workers=config.data.workers,
        passed_over=passed_over,
    )


@contextmanager
def prepared_aside(config: RunConfig) -> Iterator[dict[str, RunConfig]]:
    """The parts of a run as its modalities prepare them; its folder is read, but not written to.

    What training would make of all its data is made of the first good shard. It is gone with the
    context, pipelines that were built in it are not.
    """
    parts = config.parts()
    with TemporaryDirectory(prefix="selfdistill-") as folder:
        prepared = {}
        for name, part in parts.items():
            own = Path(folder) / name
            own.mkdir()
            with errors_of(name, parts):
                prepared[name] = _prepared(load_modality(part.modality), part, own)
        yield prepared


def _prepared(modality: Modality, config: RunConfig, folder: Path) -> RunConfig:
    with suppress(UserError):  # the run has not begun
        for name, content in modality.companions(Path(config.run_dir)).items():
            write_atomically(folder / name, content)
    locations = resolve(config.data.train, access=Access.of(config.data))
    *others, last = locations if config.data.skip_bad_shards else locations[:1]
    for location in others:
        with suppress(UnusableShard):
            return _prepared_on(location, modality, config, folder)
    return _prepared_on(last, modality, config, folder)


def _prepared_on(
    location: Location, modality: Modality, config: RunConfig, folder: Path
) -> RunConfig:
    shard = location.url if isinstance(location, Remote) else str(location)
    one = replace(config, run_dir=str(folder), data=replace(config.data, train=[shard]))
    return replace(modality.prepare(one), run_dir=config.run_dir, data=config.data)
