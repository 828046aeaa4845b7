"""What is wrong with a run, if anything, and what to try."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import hypot, isfinite, nan
from typing import Any, Literal

from selfdistill.config import GuardConfig
from selfdistill.health.bands import MIN_DISTANCE, Band, Values
from selfdistill.health.figures import COLLAPSE, FIGURES

Status = Literal["healthy", "early", "look", "collapsed"]
WORDS: Mapping[Status, str] = {
    "healthy": "Healthy",
    "early": "Too early to say",
    "look": "Look at this",
    "collapsed": "Collapsed",
}
EARLY_STEP = 50
"""Before it a warm-up may have moved the student too little to tell."""
MIN_EARLY_STD = 0.2
"""K normalised layers that have nothing in common have an average that deviates by K ** -0.5."""
_RANK: Sequence[Status] = tuple(WORDS)
_ORDER = list(FIGURES)


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be.

    Attributes:
        status: how bad it is.
        text: one sentence without a full stop.
        advice: what to try.
        key: of the figure; empty: it is about no figure.
    """

    status: Status
    text: str
    advice: str = ""
    key: str = ""


@dataclass(frozen=True)
class Verdict:
    """Attributes:
    status: the worst of the findings.
    findings: the worst first; empty for a healthy run.
    """

    status: Status
    findings: Sequence[Finding]

    @property
    def words(self) -> str:
        return WORDS[self.status]


def verdict(findings: Sequence[Finding]) -> Verdict:
    """The worst decides."""
    ordered = sorted(findings, key=lambda finding: -_RANK.index(finding.status))
    return Verdict(ordered[0].status if ordered else "healthy", ordered)


def judge(
    steps: Sequence[int], values: Values, bands: Mapping[str, Band], guard: GuardConfig
) -> list[Finding]:
    """What the last lines of a log say.

    A figure counts as outside when it was so in the last ``guard.patience`` lines that judge it, or
    in all where there are fewer; the guard, which stops runs, counts in the same way.

    Args:
        steps: of the lines.
        values: as long as ``steps``.
        bands: of the figures that have one.
        guard: the run's own.
    """
    if not steps:
        return [Finding("early", "nothing was logged yet")]
    found = []
    for key in ("target_std", "loss"):
        if key in values and not isfinite(values[key][-1]):
            text = f"no step {_since(steps, values[key])} had a loss and a gradient that are finite"
            advice = FIGURES["left_out_steps"].advice
            found.append(Finding("collapsed", text, advice, key))
            break
    for key, band in sorted(bands.items(), key=lambda item: _ORDER.index(item[0])):
        lines = _lines(values[key], band)
        out = [line for line in lines if band.is_out(line, values[key][line])]
        last = lines[-max(guard.patience, 1) :]
        if out and set(last) <= set(out):
            judged = steps[lines[-1]] > guard.after_steps
            below = values[key][out[-1]] < band.low[out[-1]]
            certain = band.stops and below and judged and len(last) >= guard.patience
            found.append(_finding(key, steps, values[key], band, out, certain))
    known = {finding.key for finding in found}
    last_line = {key: series[-1] for key, series in values.items()}
    signs = early_signs(steps[-1], last_line, guard)
    found += [sign for sign in signs if sign.key not in known]
    if steps[-1] <= guard.after_steps and any(band.stops for band in bands.values()) and not found:
        text = (
            f"whether it collapses is judged from step {guard.after_steps:,} on "
            f"(guard.after_steps), and step {steps[-1]:,} was the last one logged"
        )
        found.append(Finding("early", text))
    return found


def _since(steps: Sequence[int], series: Sequence[float]) -> str:
    """Of which steps the last lines, without a finite value, are; each is of those before it."""
    known = [step for step, value in zip(steps, series, strict=True) if isfinite(value)]
    return f"after step {known[-1]:,}" if known else f"up to step {steps[-1]:,}"


def early_signs(step: int, values: Mapping[str, float], guard: GuardConfig) -> list[Finding]:
    """What is wrong already before the guard judges a run, by one line of its log.

    Args:
        step: of the line.
        values: its figures; NaN where there is none.
        guard: the run's own.
    """
    if step < EARLY_STEP:
        return []
    std = values.get("target_std", nan)
    distance = values.get("teacher_distance", nan)
    found = []
    early = step <= guard.after_steps
    if early and std < MIN_EARLY_STD:
        text = (
            f"the targets deviate by {std:.3g} only: an average of normalised layers does so by "
            f"{MIN_EARLY_STD} at least"
        )
        advice = "Normalise layers or targets: objective.layer_norms, objective.target_norms."
        found.append(Finding("look", text, advice, "target_std"))
    if early and distance < MIN_DISTANCE:
        text = "the teacher is a copy of the student"
        found.append(Finding("look", text, FIGURES["teacher_distance"].advice, "teacher_distance"))
    if 0 < guard.max_teacher_distance < distance:
        text = (
            f"the student runs away from its teacher: their distance is {distance:.2g}, above "
            f"guard.max_teacher_distance {guard.max_teacher_distance:g}"
        )
        advice = "Try a smaller optim.lr, longer optim.warmup_steps, or a faster teacher."
        found.append(Finding("look", text, advice, "teacher_distance"))
    return found


def _lines(series: Sequence[float], band: Band) -> list[int]:
    """Those that judge a figure."""
    return [
        line
        for line, value in enumerate(series)
        if isfinite(value) and band.low[line] == band.low[line]
    ]


def since(steps: Sequence[int], series: Sequence[float], band: Band) -> int | None:
    """The step from which on a figure has been outside without a break; None: it is not."""
    first = None
    for line in reversed(_lines(series, band)):
        if not band.is_out(line, series[line]):
            break
        first = steps[line]
    return first


def _finding(
    key: str,
    steps: Sequence[int],
    series: Sequence[float],
    band: Band,
    out: Sequence[int],
    certain: bool,
) -> Finding:
    line, figure = out[-1], FIGURES[key]
    value, low, high = series[line], band.low[line], band.high[line]
    side, limit = ("below", low) if value < low else ("above", high)
    text = (
        f"{figure.name} {figure.written(value)}, {side} {figure.written(limit)} "
        f"since step {since(steps, series, band):,} ({band.why})"
    )
    return Finding("collapsed" if certain else "look", text, figure.advice, key)


def judge_probes(
    task: str, table: Mapping[str, Any], headline: bool, judged: bool
) -> list[Finding]:
    """What an evaluation says of the encoder: it should read more than an untrained one.

    Args:
        task: the name of the labelled set.
        table: of eval.json, by probe.
        headline: whether a run is judged by this task; another one can only be worse.
        judged: whether the guard judges the step of the evaluation.
    """
    linear = table.get("linear")
    if not isinstance(linear, Mapping):
        return []
    trained, untrained = linear.get("trained"), linear.get("untrained")
    if not isinstance(trained, int | float) or not isinstance(untrained, int | float):
        return []
    errors = linear.get("standard_error")
    errors = errors if isinstance(errors, Mapping) else {}
    own, theirs = (errors.get(source) or 0.0 for source in ("trained", "untrained"))
    said = (
        f"the linear probe of {task} reads {100 * trained:.1f} % from the trained encoder and "
        f"{100 * untrained:.1f} % from the untrained one"
    )
    if trained < untrained - 2 * own:
        return [Finding("collapsed" if headline and judged else "look", said, COLLAPSE)]
    if headline and trained - untrained <= 2 * hypot(own, theirs):
        advice = (
            "Train longer, or try another optim.lr first: it matters most. "
            "`selfdistill inspect` shows whether the data and the masks are what you think."
        )
        return [Finding("look", f"{said}, not clearly more", advice)]
    return []
