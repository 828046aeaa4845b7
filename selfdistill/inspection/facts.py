"""What there is to say of a data set: from its indexes, and from a random sample of it."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from selfdistill.amounts import counted, round_step, size
from selfdistill.config import RunConfig
from selfdistill.data.elsewhere.retries import take_retries
from selfdistill.data.order import SampleOrder
from selfdistill.data.steps import ByCount, ByLength, StepPlan
from selfdistill.data.tally import Tally, read_labels, tally
from selfdistill.data.tarindex import LABEL
from selfdistill.errors import BadSample, UserError
from selfdistill.inspection.look import Looked, Subject, look_at
from selfdistill.modalities.picture import Shown

LABELS_READ = 200_000
STEPS = 64
"""Over which padding is averaged."""
BINS = 10
Row = tuple[str, str]
"""A name and words."""


@dataclass(frozen=True)
class Histogram:
    """How a measure is spread: counts [n] between edges [n + 1]."""

    title: str
    edges: list[float]
    counts: list[int]


@dataclass
class Findings:
    """What was found out.

    Attributes:
        shown: the samples to be shown.
    """

    rows: list[Row] = field(default_factory=list)
    histograms: list[Histogram] = field(default_factory=list)
    shown: list[Shown] = field(default_factory=list)


def look(subject: Subject, samples: int, seed: int) -> Findings:
    """Look at a data set.

    Args:
        samples: to be shown, drawn at random.
        seed: of all that is drawn.

    Raises:
        SelfdistillError: a shard cannot be read.
    """
    known = tally(subject.shards)
    looked = look_at(subject, samples, seed)
    found = Findings(shown=looked.shown)
    if subject.picture.note:
        found.rows.append(("note", subject.picture.note))
    found.rows += _counts(subject, known)
    found.rows += _labels(subject, known, looked)
    found.rows += _lengths(subject, known, looked)
    for name, values in looked.measures.items():
        low, middle, high = (f"{v:,.4g}" for v in np.quantile(values, (0, 0.5, 1)))
        found.rows.append((name, f"median {middle}, from {low} to {high}"))
    if looked.measures:
        title, values = next(iter(looked.measures.items()))
        if min(values) < max(values):
            if len(values) < len(subject.shards):
                title += f", of {len(values):,} samples"
            counts, edges = np.histogram(values, _edges(min(values), max(values)))
            found.histograms.append(Histogram(title, edges.tolist(), counts.tolist()))
    if subject.config is not None and looked.masked:
        found.rows += _training(subject, subject.config, looked, seed)
    found.rows += _faults(subject, looked)
    return found


def _edges(low: float, high: float) -> np.ndarray:
    """About ``BINS`` round numbers that enclose a range."""
    step = round_step((high - low) / BINS)
    return step * np.arange(np.floor(low / step), np.floor(high / step) + 2)


def _counts(subject: Subject, known: Tally) -> list[Row]:
    shards = subject.shards
    members = ", ".join(f"{count:,} .{extension}" for extension, count in known.members.items())
    if known.others:
        members += f"; not read: {', '.join('.' + e for e in known.others)}"
    rows = [
        ("shards", f"{len(shards.sizes):,}"),
        ("samples", f"{len(shards):,}"),
        ("members", members),
        ("bytes", size(known.size)),
    ]
    if len(shards.sizes) > 1:
        rows[0] = ("shards", f"{rows[0][1]} of {min(shards.sizes):,} to {max(shards.sizes):,}")
    return rows


def _labels(subject: Subject, known: Tally, looked: Looked) -> list[Row]:
    total = len(subject.shards)
    labels = looked.labels
    where = "" if len(labels) == total else f", in {len(labels):,} samples"
    if known.is_here and total <= LABELS_READ:
        labels, where = list(read_labels(subject.shards, range(total))), ""
    counts = Counter(label for label in labels if label is not None)
    if not counts:
        written = known.members.get(LABEL, 0)
        odd = f"; {written:,} .{LABEL} that are no integers" if written else ""
        return [("labels", f"none{where}{odd}")]
    fewest, most = min(counts.values()), max(counts.values())
    each = f"{fewest:,}" if fewest == most else f"{fewest:,} to {most:,}"
    words = f"{counted(len(counts), 'class', 'es')} of {each}"
    missing = len(labels) - sum(counts.values())
    first = ", ".join(f"{label}: {counts[label]:,}" for label in sorted(counts)[:8])
    first += ", ..." if len(counts) > 8 else ""
    without = f"; {missing:,} without one" if missing else ""
    return [("labels", f"{words}{where} ({first}){without}")]


def _lengths(subject: Subject, known: Tally, looked: Looked) -> list[Row]:
    """The sum of the lengths, where the modality has one; hours of seconds."""
    unit = subject.modality.length_unit
    measured = looked.measures.get(unit, [])
    if known.lengths is not None:
        total, about = float(known.lengths.sum(dtype=np.float64)), ""
    elif measured:
        good = len(subject.shards) * len(measured) / looked.count
        total = good * float(np.mean(measured))
        about = "" if looked.count == len(subject.shards) else "about "
    else:
        return []
    if unit == "seconds":
        unit, total = "hours", total / 3600
    number = f"{total:,.0f}" if total >= 1000 else f"{total:.3g}"
    return [("total length", f"{about}{number} {unit}")]


def _training(subject: Subject, config: RunConfig, looked: Looked, seed: int) -> list[Row]:
    masked = looked.masked / (looked.masked + looked.visible)
    padding = "none, all inputs have one length"
    if len(set(looked.lengths)) > 1:
        padding = _padding(subject, config, looked, seed)
    return [("masked", f"{masked:.1%} of what is no padding"), ("padding", padding)]


def _padding(subject: Subject, config: RunConfig, looked: Looked, seed: int) -> str:
    """The padded share of the inputs in batches of samples like those that were looked at."""
    lengths = np.array(looked.lengths, np.int64)
    plan: StepPlan = ByCount(SampleOrder([len(lengths)], seed), subject.batch_size)
    batches = f"{subject.batch_size:,} samples"
    amount, pipeline = config.data.batch_length / config.train.accumulate, subject.picture.pipeline
    if amount and pipeline is not None:
        unit = subject.modality.length_unit
        own = np.minimum(np.array(looked.measures[unit], np.float32), np.float32(pipeline.longest))
        # as many as there are: of few, a step has what training would give it
        count = min(len(subject.shards), int(STEPS * amount / own.mean(dtype=np.float64)) + 1)
        own, lengths = np.resize(own, count), np.resize(lengths, count)
        try:
            plan = ByLength(SampleOrder([len(own)], seed), own, amount, 1)
        except UserError as error:
            return str(error)
        batches = f"{amount:,.4g} {unit}"
    padded = values = 0
    for step in range(STEPS):
        chosen = lengths[plan.share(step, 0, 1).samples]
        values += len(chosen) * int(chosen.max())
        padded += len(chosen) * int(chosen.max()) - int(chosen.sum())
    return f"{padded / values:.1%} of the inputs in batches of {batches}"


def _faults(subject: Subject, looked: Looked) -> list[Row]:
    shards = subject.shards
    words = f"none of {looked.count:,} samples looked at"
    if looked.bad:
        counts = Counter(reason for _, reason, _ in looked.bad)
        reasons = ", ".join(f"{count} x {reason}" for reason, count in counts.most_common())
        key, *found = looked.bad[0]
        first = f"{key}: {BadSample(*found)}"
        words = (
            f"{len(looked.bad)} of {looked.count:,} samples looked at: {reasons} (such as {first})"
        )
    rows = [("bad samples", words)]
    if shards.left_out:
        more = f"; and {len(shards.left_out) - 5} more" if len(shards.left_out) > 5 else ""
        names = "; ".join(f"{name} {why}" for name, why in shards.left_out[:5])
        rows.append(("bad shards", f"{len(shards.left_out):,} left out: {names}{more}"))
    if shards.skipped:
        rows.append(("left out", f"{shards.skipped:,} samples without such a member"))
    if retries := take_retries():
        rows.append(("connections", f"broken and tried again: {retries:,}"))
    faults = "; ".join(f"{name}: {fault}" for name, fault in shards.faults[:5])
    more = f"; and {len(shards.faults) - 5} more" if len(shards.faults) > 5 else ""
    return [*rows, ("faults", faults + more or "none in the shards")]
