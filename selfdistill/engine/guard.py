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
from selfdistill.health.bands import lower_limits
from selfdistill.health.figures import COLLAPSE, FIGURES
from selfdistill.health.verdict import early_signs


class CollapseGuard:
    """Watches each logging interval's deviations and ranks."""

    def __init__(self, config: GuardConfig) -> None:
        self.config = config
        self._told: set[str] = set()
        self.reference: dict[str, float] = {}
        self.alarms = 0

    def check(self, step: int, values: Mapping[str, float]) -> None:
        """Judge one logging interval.

        Args:
            step: finished optimiser steps.
            values: of the interval, at least those that ``lower_limits`` names.

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
            raise HealthError(f"collapsed at step {step}: {'; '.join(found)}. {COLLAPSE}")

    def _findings(self, values: Mapping[str, float]) -> list[str]:
        return [
            f"the {FIGURES[limit.key].name} fell to {values[limit.key]:.3g}, below {limit.low:.3g} "
            f"({limit.why})"
            for limit in lower_limits(self.config, self.reference, values)
            if values[limit.key] < limit.low
        ]

    def signs(self, step: int, values: Mapping[str, float]) -> list[str]:
        """What looks wrong, in words, once for as long as it does; arguments as of ``check``."""
        found = early_signs(step, values, self.config)
        fresh = [sign for sign in found if sign.key not in self._told]
        self._told = {sign.key for sign in found}
        return [f"{sign.text}. {sign.advice}" for sign in fresh]

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
                f"encoder and {untrained:.3f} from the untrained one. {COLLAPSE}"
            )

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"reference": self.reference, "alarms": self.alarms}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.reference = dict(state["reference"])
        self.alarms = int(state["alarms"])
