"""The training loop.

A batch walks: loader -> ``TrainingStep`` -> ``Data2Vec.forward`` -> backward -> clip -> optimiser
-> teacher. What changes over time is a function of the step, so a checkpoint is the model, the
optimiser, the step, and what the guards remember.
"""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn, Protocol

from accelerate import Accelerator
from accelerate.utils import gather_object

from selfdistill.config import RunConfig
from selfdistill.config_files.load import plain_config
from selfdistill.data.ledger import MicroBatch, SkipBudgetError, SkipLedgers, joined
from selfdistill.engine.checkpoint import Checkpointer
from selfdistill.engine.checkpoint_files import Checkpoint
from selfdistill.engine.contention import Contention
from selfdistill.engine.guard import CollapseGuard
from selfdistill.engine.interval import Interval
from selfdistill.engine.late import Late
from selfdistill.engine.metrics import MetricsWriter, Progress, Throughput, by_modality
from selfdistill.engine.optim import build_optimizer, build_scheduler
from selfdistill.engine.recovery import Recovery, StepRecord
from selfdistill.engine.saving import Saver
from selfdistill.engine.sharding import settings, shard
from selfdistill.engine.signals import StopSignal
from selfdistill.engine.sums import over_processes
from selfdistill.engine.training_step import TrainingStep
from selfdistill.errors import HealthError, Preempted, UserError, errors_of
from selfdistill.models.region import compilations, prepare_regions
from selfdistill.objective.data2vec import Data2Vec
from selfdistill.schedules import ema_decay

Load = Callable[[int, Sequence[int]], Generator[list[MicroBatch]]]
"""The micro-batches of each step, from a number of steps on, past some steps of the data."""


class Evaluate(Protocol):
    """Evaluates the present weights; all processes call both together."""

    def __call__(self, step: int) -> dict[str, float] | None:
        """Scalars to log after so many steps; None, on all processes: a signal put an end to it."""

    def lacks(self, step: int) -> bool:
        """Whether there is an evaluation to be made, and that of ``step`` was not, or not all."""


class Trainer:
    """Trains a model and keeps its run folder.

    Args:
        model: on the CPU, with its first weights.
        config: of the run.
        accelerator: for device, precision and processes.
        checkpointer, writer: of the run folder; None on processes other than the main one.
        progress: the console.
        data: what checkpoints keep of the training data; plain JSON values.

    Attributes:
        collapse: the guard of each modality.
        interval: what the next line of the log is made of.
        train_seconds: from asking the loader for the batches of a step to the teacher's update,
            summed over the steps that led to the present weights, also in the run's earlier
            processes. Logging, evaluation and checkpoints are not in it.
    """

    def __init__(
        self,
        model: Data2Vec,
        config: RunConfig,
        accelerator: Accelerator,
        checkpointer: Checkpointer | None,
        writer: MetricsWriter | None,
        progress: Progress,
        data: Mapping[str, Any],
    ) -> None:
        self.config = config
        self.data = data
        self.parts = config.parts()
        self.accelerator = accelerator
        self.writer = writer
        self.progress = progress
        prepare_regions(model, config.train.activation_checkpointing, config.train.compile)
        sharding = settings()
        if sharding is not None:
            shard(model, accelerator, sharding)
        optimizer = build_optimizer(model, config.optim)
        self.plain_model = model
        # "evaluation" leaves out what processes with whole copies of the model need
        wrapped = accelerator.prepare_model(model, evaluation_mode=sharding is not None)
        self.optimizer = accelerator.prepare_optimizer(optimizer)
        self.saver = Saver(model, optimizer, accelerator, checkpointer, config.checkpoint.best)
        self.collapse = {name: CollapseGuard(part.guard) for name, part in self.parts.items()}
        self.recovery = Recovery(config, accelerator, writer, progress)
        self.take_step = TrainingStep(
            model,
            wrapped,
            self.optimizer,
            build_scheduler(optimizer, config.optim, config.train.steps),
            self.recovery.judge,
            config,
            accelerator,
        )
        self.ledgers = SkipLedgers(config.data.max_bad_share, self.parts)
        self.interval = Interval(self.parts)
        self.step_count = 0
        self.train_seconds = 0.0
        self.contention = Contention(accelerator.device)
        self.stop = StopSignal()
        self._unread: deque[tuple[StepRecord, Sequence[MicroBatch], Late]] = deque()
        self._void = 0  # steps at the end, for which a process has no batches any more

    def fit(self, load: Load, evaluate: Evaluate) -> None:
        """Train from ``step_count`` to ``train.steps``.

        Args:
            load: called at the start, and whenever the run went back.
            evaluate: called every ``eval.every`` steps and after the last, and at the start where
                an evaluation was cut short.

        Raises:
            HealthError: the run collapsed, or goes wrong at the same place again and again.
            DataBudgetError: too many samples are bad.
            Preempted: a signal came; the state was saved.
        """
        with self.stop.caught():
            try:
                self._make_up(evaluate)
                while self.step_count < self.config.train.steps:
                    batches = load(self.step_count, self.recovery.guard.passed_over)
                    with contextlib.closing(batches):
                        self._train(batches, evaluate)
                self.saver.finish()
            except (HealthError, Preempted, SkipBudgetError):
                self.saver.finish()
                raise
            finally:
                # a launcher that ends all processes because one failed has to wait for it, too
                self.saver.settle()

    def _make_up(self, evaluate: Evaluate) -> None:
        """Do what the run was ended before, when it had saved this step."""
        step = self.step_count
        if self.writer is not None:
            self.saver.rate(step, self.writer.written(step))
        if self._evaluation_is_due() and evaluate.lacks(step):
            self._evaluate(evaluate, saved=True)

    def _train(self, batches: Iterator[list[MicroBatch]], evaluate: Evaluate) -> None:
        """To the last step, or to where the run goes back."""
        throughput = Throughput()
        self.interval.restart_clock()
        micro_batches: list[MicroBatch] = []
        while self.step_count < self.config.train.steps:
            self.saver.check()
            began = time.monotonic()
            found = self._next(batches, first=not micro_batches)
            self.interval.data_wait += time.monotonic() - began
            micro_batches = found or micro_batches
            self.step(micro_batches, found is None)
            if self._ends_interval():
                self.read_verdicts()
            if self._void:
                self._end()
            self.train_seconds += time.monotonic() - began
            samples = sum(len(p.batch.inputs) for b in micro_batches for p in b.values())
            throughput.add(samples * self.accelerator.num_processes)
            self.progress.advance(self.step_count)
            if self.recovery.guard.is_exhausted:
                self._go_back()
                return
            self._at_intervals(throughput, evaluate)

    def _next(self, batches: Iterator[list[MicroBatch]], first: bool) -> list[MicroBatch] | None:
        """The micro-batches of the next step; None: this process was asked to stop, also while it
        waited for them, which may take minutes.

        Another process may be in the step by then, and does not get out of it alone: all take it,
        but it is void. Before the ``first`` step they ask each other.

        Raises:
            Preempted: there is no other, or they have asked each other.
        """
        found = self.stop.until_asked(lambda: next(batches))
        alone = self.accelerator.num_processes == 1
        if (alone or first) and over_processes([float(found is None)], self.accelerator)[0]:
            self._end()
        return found

    def _end(self) -> NoReturn:
        """Save what was reached before a process was asked to stop.

        Raises:
            Preempted: always.
        """
        self.read_verdicts()
        self.step_count -= self._void
        self.save()
        raise Preempted(self.stop.explained(self.step_count, self.saver.last))

    def step(self, micro_batches: Sequence[MicroBatch], void: bool = False) -> None:
        """One optimiser step over the micro-batches.

        The host does not wait for it: it takes note of each step while the device is at the next.

        Args:
            micro_batches: of this process.
            void: they are only there to end the step with the others; nobody takes it.
        """
        number = self.step_count
        step = self.take_step(number, micro_batches, void=void, logged=self._is_logged(number + 1))
        self.interval.add(step)
        record = self.recovery.record(number, micro_batches, step.outputs, self.saver.last)
        self._unread.append((record, micro_batches, Late(step.numbers)))
        self.step_count += 1
        self.read_verdicts(all_but=1)

    def read_verdicts(self, all_but: int = 0) -> None:
        """Take note of the steps so far, but for the last ones; those wait for the device."""
        while len(self._unread) > all_but and not self.recovery.guard.is_exhausted:
            record, micro_batches, late = self._unread.popleft()
            void, *numbers = late.read()
            if void:
                self._void += 1
                continue
            tried, verdict = numbers[: 2 * len(self.parts)], numbers[2 * len(self.parts) :]
            self.recovery.note(record, verdict)
            for line in chain.from_iterable(map(self.ledgers.add, micro_batches)):
                self.progress.log(line)
            if self.ledgers.count(tried):
                self.ledgers.check(gather_object([self.ledgers.state()]))

    def _ends_interval(self) -> bool:
        """Whether something is done after this step that needs to know all of it."""
        saved = self.step_count % self.config.checkpoint.every == 0
        logged = self._is_logged(self.step_count)
        return saved or logged or self._void > 0 or self._evaluation_is_due()

    def _at_intervals(self, throughput: Throughput, evaluate: Evaluate) -> None:
        config, step = self.config, self.step_count
        done = step == config.train.steps
        with self._collapse_saved():
            logged = self._log(throughput) if self._is_logged(step) else {}
        saved = step % config.checkpoint.every == 0 or done
        if saved:
            self.save()
            self.saver.rate(step, logged)
        if self._evaluation_is_due():
            self._evaluate(evaluate, saved)
            throughput.restart()

    def _is_logged(self, step: int) -> bool:
        return step % self.config.log.every == 0 or step == self.config.train.steps

    def _evaluation_is_due(self) -> bool:
        step, every = self.step_count, self.config.eval.every
        return step == self.config.train.steps or (every > 0 and step > 0 and step % every == 0)

    def _evaluate(self, evaluate: Evaluate, saved: bool) -> None:
        """Evaluate, or end the run when a signal cuts it short; then it is made up for later."""
        with self._collapse_saved():
            scalars = evaluate(self.step_count)
        if scalars is None:
            if not saved:
                self.save()
            raise Preempted(self.stop.explained(self.step_count, self.saver.last))
        if self.writer is not None and scalars:
            self.writer.write(self.step_count, {**scalars, "train_seconds": self.train_seconds})
            self.saver.rate(self.step_count, scalars)

    @contextlib.contextmanager
    def _collapse_saved(self) -> Iterator[None]:
        """Save the state of a run that turns out inside to have collapsed, and say where."""
        try:
            yield
        except HealthError as error:
            self.save()
            reason = str(error).removesuffix(".")
            raise HealthError(f"{reason}. The state is kept in {self.saver.last}") from error

    def _log(self, throughput: Throughput) -> dict[str, float]:
        config, step = self.config, self.step_count
        distance = self.plain_model.teacher.distance(self.plain_model.student)
        run, own = self.interval.take(self.accelerator)
        bad, retries = over_processes(
            [float(self.ledgers.total()), float(self.ledgers.retries())], self.accelerator
        )
        values = {
            **by_modality(own),
            **run,
            "teacher_distance": distance,
            "lr": self.optimizer.param_groups[0]["lr"],
            "ema_decay": ema_decay(step, config.teacher, config.compat.ema_epoch_steps),
            "samples_per_second": throughput.take(),
            "train_seconds": self.train_seconds,
            "bad_samples": bad,
            "retries": retries,
            **({"compilations": float(compilations())} if config.train.compile else {}),
            "left_out_steps": float(self.recovery.guard.total),
            "rollbacks": float(self.recovery.guard.rollbacks),
        }
        if self.writer is not None:
            self.writer.write(step, values)
        self.progress.report(step, values)
        for sign in self.contention.signs():
            self.progress.log(sign)
        for name, guard in self.collapse.items():
            figures = {**own[name], "teacher_distance": distance}
            for sign in guard.signs(step, figures):
                whose = f"{name}: " if len(self.parts) > 1 else ""
                self.progress.log(f"look at this, step {step}: {whose}{sign}")
            with errors_of(name, self.parts):
                guard.check(step, figures)
        return values

    def save(self) -> None:
        """Take the present state; it is written while training goes on."""
        if self.writer is not None:
            self.writer.sync()  # no line is lost with a power cut that the checkpoint outlives
        state = {
            "config": plain_config(self.config),
            "data": self.data,
            "processes": self.accelerator.num_processes,
            "guard": {name: guard.state() for name, guard in self.collapse.items()},
            "recovery": self.recovery.state(),
            "bad_samples": joined(gather_object([self.ledgers.state()])),
            "train_seconds": self.train_seconds,
        }
        if self.accelerator.scaler is not None:
            state["scaler"] = self.accelerator.scaler.state_dict()
        done = self.step_count == self.config.train.steps
        interval = self.interval.state(self.accelerator)
        self.saver.save(self.step_count, state, interval, None if done else self.recovery.good)

    def restore(self, checkpoint: Checkpoint, path: Path) -> None:
        """Go on from a checkpoint of a run with the same architecture.

        Raises:
            UserError: another version of the program wrote it.
        """
        try:
            self._take(checkpoint, path)
            self.recovery.load_state(checkpoint.state["recovery"], path)
        except KeyError as error:
            raise UserError(
                f"resume: {path} lacks {error} and was written by another version of this program; "
                "go on with that one, or start from the weights in another run_dir with init_from"
            ) from error

    def _go_back(self) -> None:
        """To the last good checkpoint, past the batches that were left out since."""
        self.saver.finish()
        path, checkpoint = self.recovery.target(self.step_count)
        self._take(checkpoint, path)
        self.recovery.go_back(checkpoint)
        self._unread.clear()
        self.saver.remove_after(checkpoint.step)
        if self.writer is not None:
            self.writer.truncate_after(checkpoint.step)

    def _take(self, checkpoint: Checkpoint, path: Path) -> None:
        """All of a checkpoint but the state of the recovery."""
        state = checkpoint.state
        self.saver.restore(checkpoint, path)
        for name, guard in self.collapse.items():
            guard.load_state(state["guard"][name])
        self.ledgers = SkipLedgers(self.config.data.max_bad_share, self.parts)
        # the main one goes on with the counts of all
        self.ledgers.load_state(state["bad_samples"], as_own=self.accelerator.is_main_process)
        self.interval.load_state(checkpoint.interval, self.accelerator)
        self.train_seconds = state["train_seconds"]
        if self.accelerator.scaler is not None and "scaler" in state:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.step_count = checkpoint.step
