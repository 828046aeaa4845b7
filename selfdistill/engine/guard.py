"""Stops a run that learns nothing any more, and says what collapsed and what to try.

A falling loss shows nothing here: when teacher and student agree on a constant, it is zero. So
the guard looks at the targets and predictions themselves. A fixed floor on their deviation misses
slow collapses, and what is healthy differs between data and target normalisations; the untrained
teacher of the same run, seen in the first logging interval, is the reference.
"""

import math
from collections.abc import Mapping
from typing import Any

from selfdistill.config import GuardConfig
from selfdistill.errors import HealthError

ADVICE = (
    "Try a slower teacher (teacher.ema_decay closer to 1), a smaller optim.lr or longer "
    "optim.warmup_steps, layer or instance norm in objective.layer_norms, or a smaller mask; "
    "guard.* sets the limits."
)


SAME_WEIGHTS = 1e-6
"""Relative distance below which teacher and student are the same; a moving average lags behind
by far more as long as anything is learned."""


class CollapseGuard:
    """Watches each logging interval's deviations and ranks."""

    def __init__(self, config: GuardConfig) -> None:
        self.config = config
        self.reference: dict[str, float] = {}
        self.alarms = 0

    def check(self, step: int, values: Mapping[str, float]) -> None:
        """Judge one logging interval.

        Args:
            step: finished optimiser steps.
            values: ``target_std``, ``prediction_std``, ``target_rank`` and ``teacher_distance``
                of the interval.

        Raises:
            HealthError: ``guard.patience`` intervals in a row were out of their band.
        """
        if not math.isfinite(values["target_std"]):
            return  # every step of the interval was left out; StepGuard counts them
        if not self.reference:
            self.reference = {key: values[key] for key in ("target_std", "target_rank")}
        found = self._findings(values) if step > self.config.after_steps else []
        self.alarms = self.alarms + 1 if found else 0
        if self.alarms >= self.config.patience:
            raise HealthError(f"collapsed at step {step}: {'; '.join(found)}. {ADVICE}")

    def _findings(self, values: Mapping[str, float]) -> list[str]:
        config, start = self.config, self.reference
        limits = [
            ("target_std", config.min_target_std, "guard.min_target_std"),
            ("prediction_std", config.min_prediction_std, "guard.min_prediction_std"),
            (
                "target_std",
                config.min_relative_std * start["target_std"],
                f"guard.min_relative_std {config.min_relative_std} of the untrained teacher's "
                f"{start['target_std']:.3f}",
            ),
            (
                "target_rank",
                config.min_relative_rank * start["target_rank"],
                f"guard.min_relative_rank {config.min_relative_rank} of the untrained teacher's "
                f"{start['target_rank']:.1f}",
            ),
            (
                "prediction_std",
                config.min_predicted_share * values["target_std"],
                f"guard.min_predicted_share {config.min_predicted_share} of the targets' "
                f"{values['target_std']:.3f}",
            ),
            ("teacher_distance", SAME_WEIGHTS, "the teacher is a copy of the student"),
        ]
        return [
            f"{NAMES[key]} fell to {values[key]:.3g}, below {limit:.3g} ({why})"
            for key, limit, why in limits
            if values[key] < limit
        ]

    def check_accuracy(self, step: int, accuracy: Mapping[str, float], margin: float) -> None:
        """Judge an evaluation: training must not have made the encoder worse than random.

        Args:
            step: finished optimiser steps.
            accuracy: ``untrained`` and ``trained`` of the linear probe, 0 to 1.
            margin: how far below the trained one may be by chance.

        Raises:
            HealthError: the trained encoder is worse.
        """
        trained, untrained = accuracy["trained"], accuracy["untrained"]
        if step > self.config.after_steps and trained < untrained - margin:
            raise HealthError(
                f"collapsed at step {step}: the linear probe reads {trained:.3f} from the trained "
                f"encoder and {untrained:.3f} from the untrained one. {ADVICE}"
            )

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"reference": self.reference, "alarms": self.alarms}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.reference = dict(state["reference"])
        self.alarms = int(state["alarms"])


NAMES = {
    "target_std": "the targets' deviation",
    "prediction_std": "the predictions' deviation",
    "target_rank": "the targets' effective rank",
    "teacher_distance": "the teacher's relative distance from the student",
}
