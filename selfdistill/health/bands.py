"""Between which limits the figures of a log are healthy.

The limits on deviations and ranks are those of the run's own ``guard.*``, measured by the
untrained teacher, as the first line of the log has it: what is healthy differs between data and
normalisations. The others are rules of thumb, each with its reason beside it.
"""

from bisect import insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, isfinite, nan
from statistics import median

from selfdistill.config import GuardConfig

Values = Mapping[str, Sequence[float]]
"""Figures by name, each with a value for every line of a log; NaN where a line has none."""

MIN_DISTANCE = 1e-6
"""Below this relative distance teacher and student are the same; a moving average lags behind by
far more as long as anything is learned."""
MASKED = (0.05, 0.95)
MIN_DECAY = 0.9
MAX_WAIT = 0.1
MAX_GRADIENT = 10.0
"""In medians of the lines before."""
MIN_SPEED = 0.5
"""In medians of all lines."""
MAX_LEFT_OUT = 1e-3
"""Of all steps; the scaler of fp16 leaves out a few."""
MIN_LINES = 5
"""Lines without which a median says nothing."""


@dataclass(frozen=True)
class Band:
    """Where a figure is healthy, line by line; NaN: it is not judged there.

    Attributes:
        low: what it must not fall below; -inf: nothing.
        high: what it must not exceed; inf: nothing.
        why: where the limits come from.
        stops: whether the guard stops a run below it; above, it warns only.
    """

    low: Sequence[float]
    high: Sequence[float]
    why: str
    stops: bool = False

    def is_out(self, line: int, value: float) -> bool:
        """Whether a value of a line is outside."""
        return value < self.low[line] or value > self.high[line]


@dataclass(frozen=True)
class Limit:
    """A value that a figure must not fall below, and its reason."""

    key: str
    low: float
    why: str


def lower_limits(
    guard: GuardConfig, start: Mapping[str, float], values: Mapping[str, float]
) -> list[Limit]:
    """What collapses are known by.

    Args:
        start: ``target_std`` and ``target_rank`` of the untrained teacher.
        values: the present ``target_std``.
    """
    return [
        Limit("target_std", guard.min_target_std, "guard.min_target_std"),
        Limit("prediction_std", guard.min_prediction_std, "guard.min_prediction_std"),
        Limit("sample_std", guard.min_sample_std, "guard.min_sample_std"),
        Limit(
            "target_std",
            guard.min_relative_std * start["target_std"],
            f"guard.min_relative_std {guard.min_relative_std:g} of the untrained teacher's "
            f"{start['target_std']:.3f}",
        ),
        Limit(
            "target_rank",
            guard.min_relative_rank * start["target_rank"],
            f"guard.min_relative_rank {guard.min_relative_rank:g} of the untrained teacher's "
            f"{start['target_rank']:.1f}",
        ),
        Limit(
            "prediction_std",
            guard.min_predicted_share * values["target_std"],
            f"guard.min_predicted_share {guard.min_predicted_share:g} of the targets' "
            f"{values['target_std']:.3f}",
        ),
        Limit("teacher_distance", MIN_DISTANCE, "the teacher is a copy of the student"),
    ]


def bands(
    steps: Sequence[int], values: Values, guard: GuardConfig, bad_per_step: float = inf
) -> dict[str, Band]:
    """The band of each figure that has one.

    Args:
        steps: of the lines.
        values: as long as ``steps``.
        guard: the run's own.
        bad_per_step: how many samples of a step may be bad, on average.
    """
    found = _guarded(steps, values, guard)
    if "explained_variance" in values:
        low = [0.0 if step > guard.after_steps else nan for step in steps]
        why = "below 0 a constant would be better"
        found["explained_variance"] = Band(low, [inf] * len(low), why)
    for key, series in values.items():
        limits = _thumb(key, steps, series, bad_per_step)
        if limits is not None:
            found[key] = limits
    return {key: band for key, band in found.items() if key in values}


def _guarded(steps: Sequence[int], values: Values, guard: GuardConfig) -> dict[str, Band]:
    unknown = [nan] * len(steps)
    columns = [values.get(key, unknown) for key in ("target_std", "target_rank")]
    start = {"target_std": nan, "target_rank": nan}
    for pair in zip(*columns, strict=True):
        if isfinite(pair[0]):
            start = dict(zip(start, pair, strict=True))
            break
    lows: dict[str, list[float]] = {}
    whys: dict[str, str] = {}
    for step, target_std in zip(steps, columns[0], strict=True):
        highest: dict[str, Limit] = {}
        for limit in lower_limits(guard, start, {"target_std": target_std}):
            known = highest.get(limit.key)
            if known is None or not isfinite(known.low) or limit.low > known.low:
                highest[limit.key] = limit
        for key, limit in highest.items():
            # a teacher that copies its student is wrong at any time
            judged = step > guard.after_steps or key == "teacher_distance"
            lows.setdefault(key, []).append(limit.low if judged else nan)
        whys |= {key: limit.why for key, limit in highest.items()}
    found = {key: Band(low, [inf] * len(low), whys[key], stops=True) for key, low in lows.items()}
    if guard.max_teacher_distance and "teacher_distance" in found:
        band = found["teacher_distance"]
        why = f"below, {band.why}; above guard.max_teacher_distance, the student runs away from it"
        high = [guard.max_teacher_distance] * len(band.low)
        found["teacher_distance"] = replace(band, high=high, why=why)
    return found


def _thumb(
    key: str, steps: Sequence[int], series: Sequence[float], bad_per_step: float
) -> Band | None:
    count = len(series)
    low, high = [-inf] * count, [inf] * count
    known = [value for value in series if isfinite(value)]
    if key == "masked_share":
        why = "outside there is almost nothing to predict, or to predict it from"
        return Band([MASKED[0]] * count, [MASKED[1]] * count, why)
    if key == "ema_decay":
        why = "below it the teacher is the student of the last few steps"
        return Band([MIN_DECAY] * count, high, why)
    if key == "data_wait":
        # the first line has the start of the workers in it
        why = "more is time that a faster loader would give back"
        return Band(low, [inf, *[MAX_WAIT] * count][:count], why)
    if key == "rollbacks":
        return Band(low, [0.0] * count, "a healthy run never does")
    if key == "left_out_steps":
        return Band(
            low, [MAX_LEFT_OUT * step for step in steps], f"{100 * MAX_LEFT_OUT:g} % of all"
        )
    if key == "samples_per_second" and len(known) >= MIN_LINES:
        usual = [MIN_SPEED * median(known)] * count
        return Band([-inf, *usual][:count], high, f"{MIN_SPEED:g} of its median")
    if key == "grad_norm" and len(known) >= MIN_LINES:
        return Band(low, _times_before(series), f"{MAX_GRADIENT:g} times its median before")
    if key == "bad_samples" and isfinite(bad_per_step):
        why = "half of what data.max_bad_share lets pass"
        return Band(low, [bad_per_step * step for step in steps], why)
    return None


def _times_before(series: Sequence[float]) -> list[float]:
    limits: list[float] = []
    before: list[float] = []  # sorted: a median of each line anew would take minutes in long runs
    for value in series:
        usual = before[len(before) // 2] if len(before) >= MIN_LINES else inf
        limits.append(MAX_GRADIENT * usual)
        if isfinite(value):
            insort(before, value)
    return limits
