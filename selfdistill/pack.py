"""Raw data into shards, in steps that can each be interrupted and repeated."""

import errno
import shlex
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from selfdistill.amounts import counted
from selfdistill.config_files.recipes import recipe_names
from selfdistill.data.sidecar import write_sidecar
from selfdistill.errors import Preempted, SelfdistillError, UserError
from selfdistill.modalities.base import load_modality
from selfdistill.packing.declaration import Job, Packing, Piece, Skipped, config_value
from selfdistill.packing.folder import begin, forget, locked, publish, tidy
from selfdistill.packing.inputs import Inputs
from selfdistill.packing.keys import piece_key
from selfdistill.packing.plan import Shape, assign
from selfdistill.packing.report import (
    ShardReport,
    Totals,
    finish,
    finished,
    load_report,
    none_left,
)
from selfdistill.packing.shards import write_shard
from selfdistill.packing.sources import Sources
from selfdistill.packing.surveys import gather, survey_lot, unsurveyed
from selfdistill.packing.workers import Bar, in_parallel


def packing_of(modality: str) -> Packing:
    """What a modality declares.

    Raises:
        UserError: there is no such modality, or it does not say how its data are packed.
    """
    packing = load_modality(modality).packing
    if packing is None:
        raise UserError(
            f"modality: {modality} does not say how its data are packed; write its shards with "
            "another program, or declare its packing (modalities/base.py)"
        )
    return packing


def pack(
    modality: str, sources: Sequence[str], job: Job, shape: Shape, workers: int = 1
) -> list[str]:
    """Write the shards of ``sources`` into ``job.folder``, or go on with it.

    The shards depend on the inputs, their names below the sources, the options, the shape and the
    seed alone.

    Args:
        modality: its name, or the dotted path of a module.
        sources: folders, files and manifests.
        job: with the modality's own options.
        workers: processes.

    Returns:
        The summary, in lines.

    Raises:
        UserError: nothing can be packed, or the folder holds something else.
        Preempted: it was interrupted.
        SelfdistillError: the disk is full, or a worker died. What is finished stays.
    """
    packing = packing_of(modality)
    packing.check(job.options)
    found = Sources(sources, packing, job.folder)
    inputs = Inputs.of(tqdm(found.entries(), desc="listing", unit=" files", disable=None))
    if not len(inputs):
        kinds = ", ".join(f"{n} {kind}" for kind, n in found.ignored.most_common(5)) or "no file"
        raise UserError(f"SOURCE: nothing to pack (found: {kinds}); {found.taken()}")
    with locked(job), _interrupted_by_sigterm():
        is_new = begin(job, inputs, {"modality": modality, **_named(shape)})
        work = _Work(modality, packing, job, shape, inputs, workers)
        try:
            lines = finished(job) or work.do(found.ignored)
            tidy(job)
            return lines
        except UserError:
            if is_new:
                forget(job)
            raise
        except KeyboardInterrupt as error:
            raise Preempted(f"interrupted; {work.rest()}") from error
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise SelfdistillError(
                f"no space left for {job.folder}; make room: {work.rest()}"
            ) from error


@contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """As by Ctrl-C: batch systems end by it what they have no time for any more."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@dataclass(frozen=True)
class _Work:
    """All that is to be done; every step leaves out what is there already."""

    modality: str
    packing: Packing
    job: Job
    shape: Shape
    inputs: Inputs
    workers: int

    def do(self, ignored: Mapping[str, int]) -> list[str]:
        """From the inputs to the summary, which is given back."""
        pieces, skipped = self._survey()
        shards = self._write(pieces)
        for shard in shards:
            skipped += shard.skipped
        totals = Totals(
            modality=self.modality,
            split=self.shape.split,
            unit=self.packing.unit,
            adds_up=self.packing.adds_up,
            inputs=len(self.inputs),
            shards=[shard for shard in shards if shard.bytes],
            skipped=skipped,
            ignored=ignored,
        )
        if not totals.shards:
            raise none_left(skipped)
        publish(self.job)
        lines = [*totals.words(self.job), "", "next:", f"  {self._next_command()}"]
        finish(self.job, totals, lines)
        return lines

    def _survey(self) -> tuple[np.ndarray, list[Skipped]]:
        self.packing.prepare(self.job, self.inputs)
        with Bar("looking through", self.inputs.size, self.packing.unit) as bar:
            lots = unsurveyed(self.packing, self.job, self.inputs, bar)
            self._run(partial(survey_lot, self.packing, self.job), lots, bar)
        pieces, skipped = gather(self.job)
        if not len(pieces):
            raise none_left(skipped)
        return pieces, skipped

    def _write(self, pieces: np.ndarray) -> list[ShardReport]:
        chosen = assign(pieces["size"], self.job.seed, self.shape)
        names = [f"{self.shape.split}-{number:06d}.tar" for number in range(len(chosen))]
        missing = {n: c for n, c in zip(names, chosen, strict=True) if not load_report(self.job, n)}
        size = sum(int(pieces["size"][rows].sum(dtype=np.int64)) for rows in missing.values())
        tasks = ((name, self._pieces(pieces[rows])) for name, rows in missing.items())
        # batches of like length are made of samples whose length is known
        known = load_modality(self.modality).length is not None
        with Bar("writing", size, self.packing.unit) as bar:
            self._run(partial(_write_shard, self.packing, self.job, known), tasks, bar)
        reports = [load_report(self.job, name) for name in names]
        return [report for report in reports if report is not None]

    def _pieces(self, rows: np.ndarray) -> list[Piece]:
        pieces = []
        for row in rows:
            source, number = self.inputs[int(row["input"])], int(row["number"])
            pieces.append(
                Piece(
                    input=source,
                    key=piece_key(source.key, number, int(row["part"])),
                    lot=int(row["lot"]),
                    number=number,
                    start=int(row["start"]),
                    stop=int(row["stop"]),
                    size=int(row["size"]),
                    length=float(row["length"]),
                )
            )
        return pieces

    def _run(self, function: Callable[[Any], None], tasks: Iterable[Any], bar: Bar) -> None:
        preload = self.packing.read.__module__
        in_parallel(function, tasks, self.workers, preload, bar)

    def rest(self) -> str:
        """What to do where the work was broken off, in words."""
        done = len(list(self.job.state.glob("*.tar.json")))
        return f"what is finished stays ({counted(done, 'shard')}); run the same command to go on"

    def _next_command(self) -> str:
        recipe = f"{self.modality}/base_visible"
        config = recipe if recipe in recipe_names() else "CONFIG"
        train = f"data.train=[{config_value(self.job.folder)}]"
        run = Path("runs") / self.job.folder.resolve().name
        words = [config, f"run_dir={config_value(run)}", train]
        return shlex.join(["selfdistill", "pretrain", *words, *self.packing.settings(self.job)])


def _write_shard(
    packing: Packing, job: Job, with_lengths: bool, task: tuple[str, Sequence[Piece]]
) -> None:
    name, pieces = task
    report = write_shard(packing, job, name, pieces)
    if report.bytes:
        lengths = np.array(report.lengths, np.float32) if with_lengths else None
        write_sidecar(job.folder / name, lengths=lengths, digest=report.sha256)
    report.save(job)


def _named(shape: Shape) -> dict[str, Any]:
    """By the names of the command line."""
    return {
        "name": shape.split,
        "shard-size": shape.shard_size / 1e6,
        "min-shards": shape.min_shards,
    }
