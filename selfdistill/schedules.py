"""The decay of the teacher's moving average as a function of the step."""

from selfdistill.config import TeacherConfig


def ema_decay(step: int, teacher: TeacherConfig, epoch_steps: int = 0) -> float:
    """Decay of the teacher update that follows optimiser step number ``step``.

    It rises linearly from ``ema_decay`` to ``ema_end_decay`` over ``ema_anneal_end_step`` steps
    and stays there (data2vec 1.0, section 3.2). The operations keep the originals' order, so the
    values equal theirs to the last bit.

    Args:
        step: optimiser steps finished, 1 after the first.
        teacher: of the run.
        epoch_steps: BEiT's ramp with epochs of this many steps, see
            ``CompatConfig.ema_epoch_steps``; 0: the plain ramp.
    """
    start, end, ramp = teacher.ema_decay, teacher.ema_end_decay, teacher.ema_anneal_end_step
    if epoch_steps == 0:
        return end if step >= ramp else end - (end - start) * (1 - step / ramp)
    done = step - 1
    epoch_start = done // epoch_steps * epoch_steps
    if epoch_start >= ramp:
        return end
    return start + min(done, ramp - 1) * (end - start) / ramp
