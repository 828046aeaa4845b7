"""What the loader hands over, and the count of the samples that could not be used."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from selfdistill.amounts import round_step
from selfdistill.data.elsewhere.retries import take_retries
from selfdistill.errors import BadSample, DataBudgetError, errors_of
from selfdistill.types import Batch

MIN_SEEN = 100
"""Samples after which the share of bad ones means something."""
LOGGED_PER_REASON = 5
EXAMPLES = 3
BINS = 4
LENGTH = re.compile(r"([0-9.]+(?:e[+-]?[0-9]+)?) ([a-z]+), ")
"""How the detail of a sample that is too short or too long starts: "0.2 seconds, at least ..."."""

Bad = tuple[str, str, str]
"""Key, reason, detail."""


@dataclass(frozen=True)
class Loaded:
    """One modality's part of a micro-batch and what went wrong on the way.

    Attributes:
        batch: as the pipeline collates it.
        bad: the samples that were replaced: key, reason, detail.
        seen: samples tried.
        retries: broken connections that the process which made this has tried again since it made
            the one before.
    """

    batch: Batch
    bad: list[Bad]
    seen: int
    retries: int = 0

    def pin_memory(self) -> "Loaded":
        """Called by the DataLoader where there is a GPU."""
        return replace(self, batch=self.batch.pin_memory())


MicroBatch = Mapping[str, Loaded]
"""What one forward pass is given, by modality."""


def reasons_of(bad: Sequence[Bad]) -> str:
    """Of how many, and the first few."""
    counts = Counter(reason for _, reason, _ in bad)
    reasons = ", ".join(f"{count} x {reason}" for reason, count in counts.most_common())
    examples = "; ".join(f"{key}: {BadSample(*found)}" for key, *found in bad[:5])
    return f"{reasons} (such as {examples})"


def all_bad(bad: Sequence[Bad]) -> DataBudgetError:
    told = "; ".join((f"every sample tried was bad: {reasons_of(bad)}", *_spread(bad)))
    return DataBudgetError(told)


def _spread(bad: Sequence[Bad]) -> Iterator[str]:
    """How the lengths of samples that are too short or too long are spread, by unit, if several
    are told."""
    lengths: dict[str, list[float]] = {}
    for _, _, detail in bad:
        if found := LENGTH.match(detail):
            lengths.setdefault(found[2], []).append(float(found[1]))
    for unit, values in lengths.items():
        if len(values) > 1:
            step = round_step(max(values) / BINS)
            counts = sorted(Counter(int(value / step + 1e-9) for value in values).items())
            bins = (f"{n * step:g} to {(n + 1) * step:g}: {count}" for n, count in counts)
            yield f"{unit}: {', '.join(bins)}"


def why_bad(key: str, error: Exception) -> Bad:
    if isinstance(error, BadSample):
        return key, error.reason, error.detail
    return key, "undecodable", repr(error)[:200]


class SkipLedger:
    """Counts one modality's bad samples by reason and stops the run when there are too many.

    Args:
        max_share: the largest share of bad samples, ``data.max_bad_share``.

    Attributes:
        counts: bad samples by reason.
        seen: samples tried.
        retries: broken connections that were tried again, in this process and in its workers.
    """

    def __init__(self, max_share: float) -> None:
        self.max_share = max_share
        self.counts: dict[str, int] = {}
        self.seen = 0
        self.retries = 0
        self._examples: list[str] = []

    def add(self, loaded: Loaded) -> list[Bad]:
        """Count a micro-batch; returns the bad samples to log, the first few of each reason.

        Raises:
            DataBudgetError: more than ``max_share`` of the samples were bad.
        """
        to_log = []
        self.seen += loaded.seen
        self.retries += loaded.retries + take_retries()
        for key, reason, detail in loaded.bad:
            self.counts[reason] = self.counts.get(reason, 0) + 1
            self._examples = [*self._examples, key][:EXAMPLES]
            if self.counts[reason] <= LOGGED_PER_REASON:
                to_log.append((key, reason, detail))
        bad = sum(self.counts.values())
        if self.seen >= MIN_SEEN and bad > self.max_share * self.seen:
            ordered = sorted(self.counts.items(), key=lambda entry: -entry[1])
            reasons = ", ".join(f"{count} x {reason}" for reason, count in ordered)
            raise DataBudgetError(
                f"skip budget exceeded: {bad} of {self.seen} samples ({bad / self.seen:.1%}) were "
                f"bad, data.max_bad_share allows {self.max_share:.1%}: {reasons}; for example "
                f"{', '.join(self._examples)}"
            )
        return to_log

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps; plain JSON values."""
        return {
            "counts": dict(self.counts),
            "seen": self.seen,
            "examples": list(self._examples),
            "retries": self.retries,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.counts = dict(state["counts"])
        self.seen = int(state["seen"])
        self._examples = list(state["examples"])
        self.retries = int(state.get("retries", 0))


class SkipLedgers:
    """The ledgers of all modalities of a run.

    Args:
        max_share: of bad samples in each.
        modalities: their names.
    """

    def __init__(self, max_share: float, modalities: Iterable[str]) -> None:
        self._ledgers = {name: SkipLedger(max_share) for name in modalities}

    def add(self, micro_batch: MicroBatch) -> list[str]:
        """Count a micro-batch; returns lines to log.

        Raises:
            DataBudgetError: as ``SkipLedger.add``; it names the modality where there are several.
        """
        lines = []
        for name, loaded in micro_batch.items():
            with errors_of(name, self._ledgers):
                to_log = self._ledgers[name].add(loaded)
            whose = f"{name} " if len(self._ledgers) > 1 else ""
            for key, *found in to_log:
                lines.append(f"skipped {whose}{key}: {BadSample(*found)}")
        return lines

    def total(self) -> int:
        """Bad samples so far."""
        return sum(sum(ledger.counts.values()) for ledger in self._ledgers.values())

    def retries(self) -> int:
        """Broken connections that were tried again so far."""
        return sum(ledger.retries for ledger in self._ledgers.values())

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps; plain JSON values."""
        return {name: ledger.state() for name, ledger in self._ledgers.items()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        for name, ledger in self._ledgers.items():
            ledger.load_state(state[name])


def joined(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The ``SkipLedgers.state`` of several processes as one."""
    found = {}
    for name in states[0]:
        own = [state[name] for state in states]
        counts: Counter[str] = Counter()
        for part in own:
            counts.update(part["counts"])
        found[name] = {
            "counts": dict(counts),
            "seen": sum(part["seen"] for part in own),
            "examples": [key for part in own for key in part["examples"]][:EXAMPLES],
            "retries": sum(part["retries"] for part in own),
        }
    return found
