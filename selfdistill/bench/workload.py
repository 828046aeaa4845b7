"""The training of a config as ``pretrain`` does it, to be measured step by step."""

import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator

from selfdistill.config import RunConfig
from selfdistill.data.loader import MicroBatch, Source, dead_workers_explained
from selfdistill.engine.accelerator import build_accelerator
from selfdistill.engine.metrics import Progress
from selfdistill.engine.trainer import Trainer
from selfdistill.errors import SelfdistillError
from selfdistill.models.flops import Counts
from selfdistill.models.stochastic_depth import StochasticDepth
from selfdistill.objective.data2vec import Data2Vec
from selfdistill.run_data import batch_sizes, load_batches, open_source, prepared_aside

STEPS = 1_000_000
"""More than are ever measured: the schedule of the rate does not end."""

SHORT = re.compile("can't allocate memory|CUDA error: out of memory|STATUS_ALLOC_FAILED")
"""In what torch says where memory is short that it does not allocate on a GPU itself: on a CPU, and
that of CUDA's libraries and of kernels, which are loaded when they are first called."""


class DoesNotFit(SelfdistillError):
    """The batch needs more memory than there is."""


@dataclass(frozen=True)
class Workload:
    """A trainer and its batches. All processes of a run call its methods together.

    Attributes:
        parts: the prepared config of each modality.
        accelerator: device, precision and processes.
        sources: the training data of each modality.
        trainer: of the whole model.
        batches: of the steps that come next.
    """

    parts: Mapping[str, RunConfig]
    accelerator: Accelerator
    sources: Mapping[str, Source]
    trainer: Trainer
    batches: Generator[list[MicroBatch]]

    def fetch(self) -> list[MicroBatch]:
        """The micro-batches of the next step, from the loader."""
        return next(self.batches)

    def step(self, micro_batches: Sequence[MicroBatch]) -> None:
        """Take them."""
        self.trainer.step(micro_batches)

    def finish(self) -> None:
        """Wait until the device has done all steps."""
        self.trainer.read_verdicts()
        if self.accelerator.device.type == "cuda":
            torch.cuda.synchronize(self.accelerator.device)

    def left_out(self) -> int:
        """Steps that were not taken because their loss or gradient was no good."""
        return self.trainer.recovery.guard.total

    def without_drops(self) -> dict[str, RunConfig]:
        """From now on steps have no layer drop and no drop path; returns the ``parts`` of that."""
        parts = {
            name: replace(part, model=replace(part.model, layer_drop=0.0, drop_path=0.0))
            for name, part in self.parts.items()
        }
        model = next(iter(parts.values())).model  # of the trunk, which all share
        self.trainer.plain_model.student.trunk.chance = StochasticDepth(model)
        return parts

    def counts(self, micro_batches: Sequence[MicroBatch]) -> list[dict[str, Counts]]:
        """What the micro-batches hold, by modality."""
        student = self.trainer.plain_model.student
        encoders = {name: student.encoder(name) for name in self.parts}
        return [
            {
                name: Counts.of(loaded.batch, encoders[name].num_prefix_tokens, encoders[name].grid)
                for name, loaded in micro_batch.items()
            }
            for micro_batch in micro_batches
        ]


@contextmanager
def workload(config: RunConfig) -> Iterator[Workload]:
    """Everything that training needs, with fresh weights; nothing is written to its folder.

    Args:
        config: checked, as ``load_config`` gives it. ``init_from`` and ``resume`` change no speed
            and are not followed.

    Raises:
        SelfdistillError: training could not begin, or memory is short (``DoesNotFit``).
    """
    train = config.train
    config = replace(config, train=replace(train, steps=max(train.steps, STEPS)))
    accelerator = build_accelerator(config)
    try:
        with _memory_explained(config), dead_workers_explained():
            made = _build(config, accelerator)
            with closing(made.batches):
                yield made
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _build(config: RunConfig, accelerator: Accelerator) -> Workload:
    sizes = batch_sizes(config, accelerator.num_processes)
    with prepared_aside(config) as prepared:
        parts = dict(prepared)
        sources = {name: open_source(name, parts, size) for name, size in sizes.items()}
    whole = replace(config, modalities=parts) if config.modalities else parts[next(iter(parts))]
    torch.manual_seed(config.seed)
    model = Data2Vec(whole)
    silent = Progress(whole.train.steps, 0, main=False)
    trainer = Trainer(model, whole, accelerator, None, None, silent, {})
    batches = load_batches(whole, sources, accelerator)
    return Workload(parts, accelerator, sources, trainer, batches)


@contextmanager
def _memory_explained(config: RunConfig) -> Iterator[None]:
    """
    Raises:
        DoesNotFit: in place of what torch raises.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        short = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not short and not SHORT.search(str(error)):
            raise
        size = config.train.batch_size
        micro = f"{size} samples in {config.train.accumulate} micro-batches"
        raise DoesNotFit(
            f"train.batch_size: {micro} do not fit into memory ({str(error).splitlines()[0][:200]})"
            "; lower it, raise train.accumulate, or set train.activation_checkpointing=true"
        ) from error
