"""The training loop.

A batch walks: loader -> ``Trainer.step`` -> ``Data2Vec.forward`` -> backward -> clip -> optimiser
-> teacher. Everything that changes over time is a function of the step, so a checkpoint is the
model, the optimiser and one integer.
"""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from selfdistill.config import RunConfig
from selfdistill.data.ledger import Loaded, SkipLedger
from selfdistill.engine.checkpoint import Checkpointer, pack_optimizer, unpack_optimizer
from selfdistill.engine.checkpoint_files import Checkpoint
from selfdistill.engine.guard import CollapseGuard, FiniteGuard
from selfdistill.engine.interval import Interval
from selfdistill.engine.metrics import MetricsWriter, Progress, Throughput
from selfdistill.engine.optim import build_optimizer, build_scheduler
from selfdistill.errors import HealthError, Preempted
from selfdistill.masking import row_keys
from selfdistill.objective.data2vec import Data2Vec
from selfdistill.schedules import ema_decay

SAME_SIGNAL_SECONDS = 1.0

Evaluate = Callable[[int], dict[str, float]]
"""Evaluates after a number of steps; returns scalars to log."""


class Trainer:
    """Trains a model and keeps its run folder.

    Args:
        model: on the CPU, with its first weights.
        config: of the run.
        accelerator: for device, precision and processes.
        checkpointer, writer: of the run folder; None on processes other than the main one.
        progress: the console.
    """

    def __init__(
        self,
        model: Data2Vec,
        config: RunConfig,
        accelerator: Accelerator,
        checkpointer: Checkpointer | None,
        writer: MetricsWriter | None,
        progress: Progress,
    ) -> None:
        self.config = config
        self.accelerator = accelerator
        self.checkpointer = checkpointer
        self.writer = writer
        self.progress = progress
        optimizer = build_optimizer(model, config.optim)
        self.scheduler = build_scheduler(optimizer, config.optim, config.train.steps)
        self.plain_model, self.plain_optimizer = model, optimizer
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.collapse = CollapseGuard(config.guard)
        self.finite = FiniteGuard(config.guard.max_nonfinite)
        self.ledger = SkipLedger(config.data.max_bad_share)
        self.step_count = 0
        self.last_checkpoint: Path | None = None
        self.good_checkpoint: Path | None = None  # a later loss was finite
        self.stop_signal = 0

    def fit(self, batches: Iterator[list[Loaded]], evaluate: Evaluate) -> None:
        """Train from ``step_count`` to ``train.steps``.

        Args:
            batches: the micro-batches of each step to come.
            evaluate: called every ``eval.every`` steps and after the last.

        Raises:
            HealthError: the run collapsed or its loss is no longer finite.
            DataBudgetError: too many samples are bad.
            Preempted: a signal came; the state was saved.
        """
        interval, throughput = Interval(), Throughput()
        with self._catch_signals():
            while self.step_count < self.config.train.steps:
                waited = time.monotonic()
                micro_batches = next(batches)
                interval.data_wait += time.monotonic() - waited
                self.step(micro_batches, interval)
                throughput.add(self.config.train.batch_size)
                self.progress.advance(self.step_count)
                self._at_intervals(interval, throughput, evaluate)

    def step(self, micro_batches: Sequence[Loaded], interval: Interval) -> None:
        """One optimiser step over the micro-batches."""
        accelerator, config = self.accelerator, self.config
        # dropout is a function of the step, so that a resumed run repeats it
        place = self.step_count * accelerator.num_processes + accelerator.process_index
        torch.manual_seed(int(row_keys(config.seed, np.array([place]))[0] >> np.uint64(1)))
        self.scheduler.step_update(self.step_count)
        batches = [loaded.batch.to(accelerator.device) for loaded in micro_batches]
        count = self._over_processes([float(sum(b.masks.count() for b in batches if b.masks))])[0]
        outputs = []
        for number, batch in enumerate(batches, start=1):
            last = number == len(batches)
            with contextlib.nullcontext() if last else accelerator.no_sync(self.model):
                output = self.model(batch)
                # gradients are averaged over processes; the loss is a mean over masked tokens
                accelerator.backward(output.loss * accelerator.num_processes / count)
            outputs.append(output._replace(loss=output.loss.detach()))
        limit = config.optim.clip_norm or float("inf")
        norm = accelerator.clip_grad_norm_(self.model.parameters(), limit)
        total = self._over_processes([float(sum(output.loss for output in outputs))])[0] / count
        # a scaled fp16 loss overflows now and then; the scaler leaves that step out by itself
        scaled = accelerator.scaler is not None
        fine = self.finite.check(
            self.step_count + 1, total, 0.0 if scaled else float(norm), self.good_checkpoint
        )
        if fine:
            self.good_checkpoint = self.last_checkpoint
            self.optimizer.step()
        elif scaled:
            accelerator.scaler.update()  # or it refuses the next step
        self.optimizer.zero_grad()
        self.step_count += 1
        if fine and not getattr(self.optimizer, "step_was_skipped", False):
            decay = ema_decay(self.step_count, config.teacher, config.compat.ema_epoch_steps)
            self.plain_model.update_teacher(decay)
            interval.add(outputs, total, float(norm))
        for loaded in micro_batches:
            for key, reason, detail in self.ledger.add(loaded):
                self.progress.log(f"skipped {key}: {reason} {detail}".rstrip())

    def _at_intervals(self, interval: Interval, throughput: Throughput, evaluate: Evaluate) -> None:
        config, step = self.config, self.step_count
        done = step == config.train.steps
        stop = self._over_processes([float(self.stop_signal)])[0] > 0
        try:
            if step % config.log.every == 0 or done:
                self._log(interval, throughput)
        except HealthError as error:
            self.save()
            raise HealthError(f"{error} The state is kept in {self.last_checkpoint}") from error
        if step % config.checkpoint.every == 0 or done or stop:
            self.save()
        if done or (config.eval.every and step % config.eval.every == 0 and not stop):
            scalars = evaluate(step)
            if self.writer is not None and scalars:
                self.writer.write(step, scalars)
            throughput.restart()
        if stop and not done:
            raise Preempted(
                f"stopped by signal {signal.Signals(self.stop_signal).name} after step {step}; "
                f"the state is kept in {self.last_checkpoint}: run the same command to go on"
                if self.stop_signal
                else f"stopped after step {step} together with another process"
            )

    def _log(self, interval: Interval, throughput: Throughput) -> None:
        config, step = self.config, self.step_count
        values = {
            **interval.take(self.accelerator),
            "teacher_distance": self.plain_model.teacher.distance(self.plain_model.student),
            "lr": self.optimizer.param_groups[0]["lr"],
            "ema_decay": ema_decay(step, config.teacher, config.compat.ema_epoch_steps),
            "samples_per_second": throughput.take(),
            "bad_samples": self._over_processes([float(sum(self.ledger.counts.values()))])[0],
            "nonfinite_steps": float(self.finite.total),
        }
        if self.writer is not None:
            self.writer.write(step, values)
        self.progress.report(step, values)
        self.collapse.check(step, values)

    def _over_processes(self, values: list[float]) -> list[float]:
        """Sums over all processes."""
        if self.accelerator.num_processes == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64, device=self.accelerator.device)
        summed: Tensor = self.accelerator.reduce(tensor, reduction="sum")
        return summed.tolist()

    def save(self) -> None:
        """Write a checkpoint of the present state."""
        if self.checkpointer is not None:
            state: dict[str, Any] = {
                "config": asdict(self.config),
                "processes": self.accelerator.num_processes,
                "guard": self.collapse.state(),
                "nonfinite": self.finite.state(),
                "bad_samples": self.ledger.state(),
            }
            if self.accelerator.scaler is not None:
                state["scaler"] = self.accelerator.scaler.state_dict()
            optimizer = pack_optimizer(self.plain_optimizer, self.plain_model)
            checkpoint = Checkpoint(
                self.step_count, self.plain_model.state_dict(), optimizer, state
            )
            self.last_checkpoint = self.checkpointer.save(checkpoint)
        self.accelerator.wait_for_everyone()

    def restore(self, checkpoint: Checkpoint, path: Path) -> None:
        """Go on from a checkpoint of a run with the same architecture."""
        self.plain_model.load_state_dict(checkpoint.model)
        unpack_optimizer(self.plain_optimizer, self.plain_model, checkpoint.optimizer)
        self.collapse.load_state(checkpoint.state["guard"])
        if "nonfinite" in checkpoint.state:
            self.finite.load_state(checkpoint.state["nonfinite"])
        self.ledger.load_state(checkpoint.state["bad_samples"])
        if self.accelerator.scaler is not None and "scaler" in checkpoint.state:
            self.accelerator.scaler.load_state_dict(checkpoint.state["scaler"])
        self.step_count = checkpoint.step
        self.last_checkpoint = path

    @contextlib.contextmanager
    def _catch_signals(self) -> Iterator[None]:
        """Finish the step and save at the first signal; a second one ends the program at once.

        A launcher passes on the signal that the whole group had already, so that one which
        follows within ``SAME_SIGNAL_SECONDS`` is the same request.
        """
        before = {}
        since = time.monotonic()

        def note(number: int, _: FrameType | None) -> None:
            nonlocal since
            if not self.stop_signal:
                self.stop_signal, since = number, time.monotonic()
            elif time.monotonic() - since > SAME_SIGNAL_SECONDS:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            before[number] = signal.signal(number, note)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
