"""Pretrain from a config: build the parts, train, evaluate."""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from selfdistill.config import RunConfig
from selfdistill.config_files.load import dump_config
from selfdistill.data.loader import MicroBatch, Source, dead_workers_explained
from selfdistill.engine.accelerator import build_accelerator
from selfdistill.engine.checkpoint import Checkpointer
from selfdistill.engine.metrics import MetricsWriter, Progress
from selfdistill.engine.run_dir import RunDir
from selfdistill.engine.together import on_all, read_on_all
from selfdistill.engine.trainer import Trainer
from selfdistill.errors import UserError, errors_of
from selfdistill.evaluation import Evaluation
from selfdistill.hub.writer import why_not_exportable
from selfdistill.initial_weights import InitialWeights, bring_companions
from selfdistill.modalities.base import load_modality, step_size
from selfdistill.objective.data2vec import Data2Vec
from selfdistill.pretrained import checkpoint_config, run_folder
from selfdistill.resume import (
    agreed_checkpoint,
    check_config,
    check_data,
    is_of_another_run,
)
from selfdistill.run_data import batch_sizes, load_batches, open_source


def pretrain(config: RunConfig, must_resume: bool = False) -> None:
    """Train from a config, going on from a checkpoint where ``config.resume`` says so.

    Args:
        config: checked, as ``load_config`` gives it.
        must_resume: refuse to start afresh.

    Raises:
        SelfdistillError: see ``selfdistill.errors`` for what ends a run.
    """
    accelerator = build_accelerator(config)
    run_dir = RunDir(config.run_dir) if accelerator.is_main_process else None
    try:
        _run(config, accelerator, run_dir, must_resume)
    finally:
        if run_dir is not None:
            run_dir.close()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _run(
    config: RunConfig, accelerator: Accelerator, run_dir: RunDir | None, must_resume: bool
) -> None:
    train = config.train
    sizes = batch_sizes(config, accelerator.num_processes)
    resumed = agreed_checkpoint(config, accelerator, must_resume)
    start = None
    with accelerator.main_process_first():
        if config.init_from and resumed is None:
            start = InitialWeights(config)
            start.check()
            start.bring_companions()
        if resumed is not None and is_of_another_run(resumed, config):
            bring_companions(config, run_folder(resumed), "resume")
        config = _prepared(config)
    sources = _opened(config, sizes, accelerator)
    torch.manual_seed(config.seed)
    model = Data2Vec(config)
    if start is not None:
        start.load_into(model)
    checkpointer = writer = checkpoint = None
    if run_dir is not None:
        kept = config.checkpoint
        checkpointer = Checkpointer(run_dir.checkpoints, kept.keep, kept.keep_every)
        writer = MetricsWriter(run_dir, config.log.tensorboard)
    if resumed is not None:
        checkpoint = read_on_all(resumed, accelerator)
        check_config(checkpoint_config(checkpoint), config)
        check_data(checkpoint.state["data"], sources)
    progress = Progress(
        train.steps, checkpoint.step if checkpoint else 0, accelerator.is_main_process
    )
    if run_dir is not None:
        _announce(config, model, sources, run_dir, progress)
    data = {name: source.fingerprint() for name, source in sources.items()}
    trainer = Trainer(model, config, accelerator, checkpointer, writer, progress, data)
    if checkpoint is not None and resumed is not None:
        trainer.restore(checkpoint, resumed)
        # its files are mapped; while they are, removing them gives the disk no space back
        checkpoint = None
        progress.log(f"resumed from {resumed}")
    if run_dir is not None:
        run_dir.save_config(dump_config(config))
        run_dir.save_environment(config.seed)
    if checkpointer is not None:
        checkpointer.clear()
    if writer is not None:
        writer.resume_after(trainer.step_count, trainer.recovery.guard.passed_over)
    evaluation = Evaluation(config, sources, trainer, run_dir, progress)
    try:
        if trainer.step_count >= train.steps:
            progress.log(f"{config.run_dir} is finished after {trainer.step_count} steps")
        else:
            evaluation.check()
        _fit(config, sources, trainer, evaluation)
    finally:
        progress.close()
        if writer is not None:
            writer.close()
    evaluation.show()


def _prepared(config: RunConfig) -> RunConfig:
    """The config after each modality has made what it needs."""
    if not config.modalities:
        return load_modality(config.modality).prepare(config)
    parts = {}
    for name, part in config.modalities.items():
        with errors_of(name, config.modalities):
            parts[name] = load_modality(name).prepare(part)
    return replace(config, modalities=parts)


def _opened(
    config: RunConfig, sizes: Mapping[str, int], accelerator: Accelerator
) -> dict[str, Source]:
    """The samples of each modality. Every process takes its share of what it finds, so that all
    must find the same.

    Raises:
        UserError: on all processes, where one of them cannot use its shards or finds others.
    """

    def opened() -> dict[str, Source]:
        return {name: open_source(name, config.parts(), size) for name, size in sizes.items()}

    sources = on_all(accelerator, opened)
    every = gather_object([{name: source.fingerprint() for name, source in sources.items()}])
    for rank, theirs in enumerate(every):
        for name, own in every[0].items():
            if theirs[name] != own:
                with errors_of(name, sources):
                    raise UserError(_apart(own, rank, theirs[name]))
    return sources


def _apart(of_main: Mapping[str, Any], rank: int, other: Mapping[str, Any]) -> str:
    """What two processes have found, by fingerprints that differ."""
    mine, theirs = ("{samples} samples in {shards} shards".format(**f) for f in (of_main, other))
    but = "" if mine != theirs else ", in another order, or of other names or sizes"
    return (
        f"data.train: the main process finds {mine}, process {rank} {theirs}{but}; give all nodes "
        "the same files under the same names"
    )


def _fit(
    config: RunConfig, sources: Mapping[str, Source], trainer: Trainer, evaluation: Evaluation
) -> None:
    def load(start_step: int, passed_over: Sequence[int]) -> Generator[list[MicroBatch]]:
        return load_batches(config, sources, trainer.accelerator, start_step, passed_over)

    with dead_workers_explained():
        trainer.fit(load, evaluation)


def _announce(
    config: RunConfig,
    model: Data2Vec,
    sources: Mapping[str, Source],
    run_dir: RunDir,
    progress: Progress,
) -> None:
    """Say what is trained, on what, and what cannot be done with it."""
    millions = sum(p.numel() for p in model.student.parameters()) / 1e6
    total = sum(len(source.shards) for source in sources.values())
    parts = config.parts()
    size = step_size(config) if len(parts) == 1 else f"{config.train.batch_size} samples"
    progress.log(
        f"pretraining an encoder of {millions:.2f} M parameters for {', '.join(sources)} on "
        f"{total} samples for {config.train.steps} steps of {size}; "
        f"everything is kept in {run_dir.path}"
    )
    for name, source in sources.items() if len(sources) > 1 else ():
        own = sum(p.numel() for p in model.student.encoders[name].parameters())
        size = str(source.batch_size) if source.batch_size else step_size(parts[name])
        progress.log(
            f"{name}: {len(source.shards)} samples, {size} in each step; {own:,} parameters of its "
            "own"
        )
    for name, part in parts.items():
        if obstacle := why_not_exportable(load_modality(part.modality), part):
            which = f"the {name} encoder" if len(sources) > 1 else "this encoder"
            progress.log(f"transformers will not be able to load {which}: {obstacle}")
