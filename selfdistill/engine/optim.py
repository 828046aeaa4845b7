"""The optimiser and the learning rate."""

import math
from fnmatch import fnmatchcase

import torch
from accelerate.optimizer import AcceleratedOptimizer
from timm.optim import param_groups_weight_decay
from timm.scheduler import CosineLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import Tensor, nn

from selfdistill.config import OptimConfig

# fairseq's defaults, which the published tri-stage runs used
_INIT_LR_SCALE = 0.01
_FINAL_LR_SCALE = 0.01


def build_optimizer(model: nn.Module, optim: OptimConfig) -> torch.optim.AdamW:
    """AdamW over the parameters that require a gradient, by torch's fused kernel.

    Parameters of one dimension, biases and those that ``optim.no_decay`` names have no weight
    decay; with ``optim.decay_one_dimensional`` only the named ones are spared.
    """
    spared = [
        name
        for name, _ in model.named_parameters()
        if any(fnmatchcase(name, pattern) for pattern in optim.no_decay)
    ]
    groups = param_groups_weight_decay(
        model,
        optim.weight_decay,
        weight_decay_exclude_1d=not optim.decay_one_dimensional,
        no_weight_decay_list=spared,
    )
    return torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=True)


def step_where(optimizer: AcceleratedOptimizer, taken: Tensor) -> None:
    """A step of the optimiser, if it is to be taken; else weights and state stay as they are.

    Args:
        optimizer: of ``build_optimizer``, prepared by accelerate.
        taken: bool scalar on the device, for which the host waits only where there is a scaler.
    """
    inner, scaler = optimizer.optimizer, optimizer.scaler
    if scaler is None:
        inner.found_inf = (~taken).float()  # the fused kernel looks there before it writes
        optimizer.step()
    elif taken:
        optimizer.step()
    else:
        scaler.update()  # or it refuses the next step


class TriStageScheduler(Scheduler):
    """Linear warm-up, a constant stage, exponential decay (data2vec 1.0, section 4.2).

    Args:
        optimizer: its groups' ``initial_lr`` is the rate of the constant stage.
        steps: of the run.
        phase_ratio: shares of the three stages.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        steps: int,
        phase_ratio: tuple[float, float, float],
    ) -> None:
        super().__init__(optimizer, param_group_field="lr", t_in_epochs=False)
        self.warmup, self.hold, self.decay = (int(steps * ratio) for ratio in phase_ratio)

    def _get_lr(self, t: int) -> list[float]:
        return [value * self._scale(t) for value in self.base_values]

    def _scale(self, t: int) -> float:
        if t < self.warmup:
            return _INIT_LR_SCALE + (1 - _INIT_LR_SCALE) * t / self.warmup
        since_hold = t - self.warmup - self.hold
        if since_hold < 0:
            return 1.0
        if since_hold < self.decay:
            return math.exp(math.log(_FINAL_LR_SCALE) * since_hold / self.decay)
        return _FINAL_LR_SCALE


def build_scheduler(optimizer: torch.optim.Optimizer, optim: OptimConfig, steps: int) -> Scheduler:
    """The learning rate as a pure function of the step.

    Call ``step_update(n)`` before optimiser step n = 0, 1, ...; a resumed run just goes on calling
    it. Cosine and constant rise linearly from 0 over ``optim.warmup_steps`` first; cosine reaches
    ``optim.min_lr`` at step ``steps``.

    Args:
        optim: checked, as ``load_config`` gives it.
        steps: of the run.
    """
    for group in optimizer.param_groups:
        # a restored optimiser brings its run's rate along; the config of this run decides
        group["initial_lr"] = optim.lr
    if optim.schedule == "tri_stage":
        return TriStageScheduler(optimizer, steps, optim.phase_ratio)
    return CosineLRScheduler(
        optimizer,
        t_initial=steps - optim.warmup_steps,
        lr_min=optim.lr if optim.schedule == "constant" else optim.min_lr,
        warmup_t=optim.warmup_steps,
        warmup_prefix=True,
        t_in_epochs=False,
    )
