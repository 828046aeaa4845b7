"""One step of training: forward and backward passes, gradient norm, verdict, optimiser, teacher."""

import contextlib
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from timm.scheduler.scheduler import Scheduler
from torch import Tensor, nn

from selfdistill.config import RunConfig
from selfdistill.data.ledger import MicroBatch, tried
from selfdistill.engine.gradients import Norms, part_norms
from selfdistill.engine.optim import step_where
from selfdistill.engine.sharding import no_sync, whole
from selfdistill.engine.step_judge import StepJudge
from selfdistill.engine.sums import masked_tokens, summed
from selfdistill.masking import row_keys
from selfdistill.objective.data2vec import Data2Vec, StepOutput
from selfdistill.schedules import ema_decay
from selfdistill.step_parts import as_part


class Step(NamedTuple):
    """What is known of a step; every number is still on the device.

    Attributes:
        outputs: of the micro-batches of this process, by modality.
        losses: float64 [n], of each modality over all processes, per masked token.
        loss: float64 scalar, their weighted sum.
        grad_norm: scalar, before clipping.
        gradients: norms of its parts; None where they were not asked for.
        taken: bool scalar, whether weights and teacher moved.
        numbers: float64 [1 + 2 n + m]: above 0 if the step is void on a process, ``tried`` over all
            processes, and those of ``Verdict``.
    """

    outputs: Sequence[Mapping[str, StepOutput]]
    losses: Tensor
    loss: Tensor
    grad_norm: Tensor
    gradients: Norms | None
    taken: Tensor
    numbers: Tensor


class TrainingStep:
    """Takes steps. The device decides whether one may be taken, so that the host hands out step
    after step without waiting.

    Args:
        plain_model: whose parameters are trained.
        model: the same, as accelerate wraps it.
        optimizer, scheduler: of its parameters.
        judge: of the steps.
        config: of the run.
        accelerator: of the run.
    """

    def __init__(
        self,
        plain_model: Data2Vec,
        model: nn.Module,
        optimizer: AcceleratedOptimizer,
        scheduler: Scheduler,
        judge: StepJudge,
        config: RunConfig,
        accelerator: Accelerator,
    ) -> None:
        self.plain_model, self.model = plain_model, model
        self.optimizer, self.scheduler = optimizer, scheduler
        self.judge = judge
        self.config = config
        self.accelerator = accelerator
        self.weights = {n: part.objective.loss_weight for n, part in config.parts().items()}

    def __call__(
        self, number: int, micro_batches: Sequence[MicroBatch], void: bool, logged: bool
    ) -> Step:
        """
        Args:
            number: of the step, the first is 0.
            micro_batches: of this process.
            void: whether they are none of this step, which no process takes then.
            logged: whether norms of the gradient's parts are wanted.
        """
        accelerator, config = self.accelerator, self.config
        self._seed(number)
        self.scheduler.step_update(number)
        # before the backward pass: the gradient of a token's loss depends on them
        counts = masked_tokens(micro_batches, self.weights, accelerator)
        outputs = self._backward(micro_batches, counts.float())
        limit = config.optim.clip_norm or float("inf")
        norm = whole(accelerator.clip_grad_norm_(self.model.parameters(), limit))
        losses, told = self._over_processes(outputs, counts, void, micro_batches)
        verdict = self.judge.judge(losses, torch.zeros_like(norm) if self._may_overflow() else norm)
        taken = verdict.taken & norm.isfinite()
        unclipped = (norm / limit).clamp(min=1)
        gradients = part_norms(self.plain_model, unclipped) if logged else None
        with as_part("optimiser"):
            step_where(self.optimizer, verdict.taken)
        self.optimizer.zero_grad()
        decay = ema_decay(number + 1, config.teacher, config.compat.ema_epoch_steps)
        with as_part("ema"):
            self.plain_model.update_teacher(decay, taken)
        weighted = [w * loss for w, loss in zip(self.weights.values(), losses, strict=True)]
        loss, numbers = torch.stack(weighted).sum(), torch.cat([told, verdict.numbers])
        return Step(outputs, losses, loss, norm, gradients, taken, numbers)

    def _seed(self, number: int) -> None:
        """Chance is a function of the step, so that a resumed run repeats it."""
        place = number * self.accelerator.num_processes + self.accelerator.process_index
        own, common = row_keys(self.config.seed, np.array([place, -1 - number])) >> np.uint64(1)
        torch.manual_seed(int(own))
        self.plain_model.student.trunk.chance.seed(int(common))

    def _backward(
        self, micro_batches: Sequence[MicroBatch], counts: Tensor
    ) -> list[dict[str, StepOutput]]:
        """Gradients of the weighted sum of each modality's mean loss over its masked tokens.

        Args:
            counts: of these, float32 [n], over all processes.
        """
        accelerator, outputs = self.accelerator, []
        tokens = dict(zip(self.weights, counts, strict=True))
        for number, loaded in enumerate(micro_batches, start=1):
            batches = {name: part.batch.to(accelerator.device) for name, part in loaded.items()}
            last = number == len(micro_batches)
            with contextlib.nullcontext() if last else no_sync(self.model, accelerator):
                found = self.model(batches)
                means = [
                    output.loss * self.weights[name] / tokens[name]
                    for name, output in found.items()
                ]
                # gradients are averaged over processes, whose losses add up
                with as_part("backward"):
                    accelerator.backward(torch.stack(means).sum() * accelerator.num_processes)
            outputs.append({n: o._replace(loss=o.loss.detach()) for n, o in found.items()})
        return outputs

    def _may_overflow(self) -> bool:
        """Whether gradients that are not finite may come of the scale of an fp16 loss.

        Now and then they do; the scaler then leaves the step out by itself and halves the scale.
        """
        scaler = self.accelerator.scaler
        return scaler is not None and scaler.get_scale() >= 1

    def _over_processes(
        self,
        outputs: Sequence[Mapping[str, StepOutput]],
        counts: Tensor,
        void: bool,
        micro_batches: Sequence[MicroBatch],
    ) -> tuple[Tensor, Tensor]:
        """Losses float64 [n] per masked token, and [1 + 2 n], above 0 if the step is void on a
        process, and ``tried``.

        A loss that is not finite on one process concerns all, and so does a void step, whose loss
        is made so.
        """
        sums = [torch.stack([found[name].loss for found in outputs]).sum() for name in self.weights]
        losses = torch.stack(sums).double()
        if void:
            losses = torch.full_like(losses, math.nan)
        told = torch.tensor([void, *tried(micro_batches, self.weights)], dtype=torch.float64)
        told = told.to(losses.device, non_blocking=True)
        found = summed(torch.cat([losses, told]), self.accelerator)
        return found[: len(sums)] / counts, found[len(sums) :]
