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


class SkipBudgetError(DataBudgetError):
    """All processes of a run have it, because they count together."""


class SkipLedger:
    """Counts one modality's bad samples by reason.

    Attributes:
        counts: bad samples by reason.
        seen: samples tried.
        retries: broken connections that were tried again, in this process and in its workers.
    """

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.seen = 0
        self.retries = 0
        self._examples: list[str] = []

    def add(self, loaded: Loaded) -> list[Bad]:
        """Count a micro-batch; returns the bad samples to log, the first few of each reason."""
        to_log = []
        self.seen += loaded.seen
        self.retries += loaded.retries + take_retries()
        for key, reason, detail in loaded.bad:
            self.counts[reason] = self.counts.get(reason, 0) + 1
            self._examples = [*self._examples, key][:EXAMPLES]
            if self.counts[reason] <= LOGGED_PER_REASON:
                to_log.append((key, reason, detail))
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
    """The ledgers of all modalities of a run: what this process knows of their samples, and how
    many all processes have together, by which a run is judged. One process alone sees too few for
    that, and other ones after each start.

    Args:
        max_share: the largest share of bad samples in each, ``data.max_bad_share``.
        modalities: their names.
    """

    def __init__(self, max_share: float, modalities: Iterable[str]) -> None:
        self._ledgers = {name: SkipLedger() for name in modalities}
        self._max_share = max_share
        self._together = [0.0] * (2 * len(self._ledgers))

    def add(self, micro_batch: MicroBatch) -> list[str]:
        """Count a micro-batch of this process; returns lines to log."""
        lines = []
        for name, loaded in micro_batch.items():
            to_log = self._ledgers[name].add(loaded)
            whose = f"{name} " if len(self._ledgers) > 1 else ""
            for key, *found in to_log:
                lines.append(f"skipped {whose}{key}: {BadSample(*found)}")
        return lines

    def count(self, tried: Sequence[float]) -> bool:
        """Count a step of all processes; returns whether too many samples of a modality are bad.

        Args:
            tried: what ``tried`` gives, over all processes.
        """
        self._together = [a + b for a, b in zip(self._together, tried, strict=True)]
        pairs = zip(self._together[::2], self._together[1::2], strict=True)
        return any(self._are_too_many(bad, seen) for seen, bad in pairs)

    def _are_too_many(self, bad: float, seen: float) -> bool:
        return seen >= MIN_SEEN and bad > self._max_share * seen

    def check(self, states: Sequence[Mapping[str, Any]]) -> None:
        """
        Args:
            states: of all processes.

        Raises:
            SkipBudgetError: more than ``max_share`` of a modality's samples were bad; it names the
                modality where there are several.
        """
        for name, whole in joined(states).items():
            counts, seen = Counter(whole["counts"]), whole["seen"]
            if not self._are_too_many(bad := counts.total(), seen):
                continue
            reasons = ", ".join(f"{count} x {reason}" for reason, count in counts.most_common())
            with errors_of(name, self._ledgers):
                raise SkipBudgetError(
                    f"skip budget exceeded: {bad} of {seen} samples ({bad / seen:.1%}) were bad, "
                    f"data.max_bad_share allows {self._max_share:.1%}: {reasons}; for example "
                    f"{', '.join(whole['examples'])}"
                )

    def total(self) -> int:
        """Bad samples so far."""
        return sum(sum(ledger.counts.values()) for ledger in self._ledgers.values())

    def retries(self) -> int:
        """Broken connections that were tried again so far."""
        return sum(ledger.retries for ledger in self._ledgers.values())

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps; plain JSON values."""
        return {name: ledger.state() for name, ledger in self._ledgers.items()}

    def load_state(self, state: Mapping[str, Any], as_own: bool = True) -> None:
        """
        Args:
            state: of all processes, as ``joined`` gives it.
            as_own: whether this process goes on with it as its own, which one of them has to.
        """
        self._together = []
        for name, ledger in self._ledgers.items():
            whole = state[name]
            self._together += [float(whole["seen"]), float(sum(whole["counts"].values()))]
            if as_own:
                ledger.load_state(whole)


def tried(micro_batches: Sequence[MicroBatch], names: Iterable[str]) -> list[int]:
    """Samples tried in a step of this process, and how many of them were bad, of each modality in
    turn: [2 n]."""
    return [
        count
        for name in names
        for count in (
            sum(loaded[name].seen for loaded in micro_batches),
            sum(len(loaded[name].bad) for loaded in micro_batches),
        )
    ]


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
