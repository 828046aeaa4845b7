"""What became of each shard, and of all together."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from selfdistill.amounts import counted, round_step, size
from selfdistill.data.ledger import reasons_of
from selfdistill.durable import write_atomically
from selfdistill.errors import UserError
from selfdistill.packing.declaration import Job, Skipped

INDEX, INFO, SUMMARY, SKIPPED = "index.json", "_info.json", "summary.json", "skipped.jsonl"
_WORDS = "summary.json"
_BARS = 12
_BAR_WIDTH = 40


@dataclass(frozen=True)
class ShardReport:
    """A finished shard.

    Attributes:
        name: of the file.
        bytes: of it; 0: all its samples were bad, and there is no such file.
        lengths: of its samples.
        skipped: what could not be packed after all.
        changes: how many of its samples have each ``Sample.change``.
    """

    name: str
    bytes: int = 0
    sha256: str = ""
    md5: str = ""
    lengths: list[float] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    changes: Mapping[str, int] = field(default_factory=dict)

    def save(self, job: Job) -> None:
        """Keep it, when the shard and its index are there."""
        write_atomically(_report_path(job, self.name), json.dumps(asdict(self)))


def load_report(job: Job, name: str) -> ShardReport | None:
    """The report of a shard, or None where the shard is not finished."""
    path = _report_path(job, name)
    if not path.exists():
        return None
    report = ShardReport(**json.loads(path.read_text("utf-8")))
    report = replace(report, skipped=[(n, r, d) for n, r, d in report.skipped])
    shard = job.folder / name
    is_there = shard.exists() and shard.stat().st_size == report.bytes
    return report if is_there or not report.bytes else None


def _report_path(job: Job, name: str) -> Path:
    return job.state / f"{name}.json"


@dataclass(frozen=True)
class Totals:
    """All shards together.

    Attributes:
        modality, split: what the shards are of.
        unit: of the lengths.
        adds_up: whether their sum means anything.
        inputs: files and parts of files that were looked at.
        shards: those that hold samples.
        skipped: all that could not be packed.
        ignored: files in folders that are of another kind, by the end of their name.
    """

    modality: str
    split: str
    unit: str
    adds_up: bool
    inputs: int
    shards: Sequence[ShardReport]
    skipped: Sequence[Skipped]
    ignored: Mapping[str, int]

    @property
    def lengths(self) -> np.ndarray:
        return np.array([length for shard in self.shards for length in shard.lengths])

    def index(self) -> dict[str, Any]:
        """The shards in the layout of wids, with SHA-256 and length besides."""
        return {
            "__kind__": "wids-shard-index-v1",
            "wids_version": 1,
            "name": self.split,
            "unit": self.unit,
            **self._sums(),
            "shardlist": [
                {
                    "url": shard.name,
                    "nsamples": len(shard.lengths),
                    "filesize": shard.bytes,
                    "md5sum": shard.md5,
                    "sha256": shard.sha256,
                    **self._total(shard.lengths),
                }
                for shard in self.shards
            ],
        }

    def info(self) -> dict[str, Any]:
        """What timm reads beside shards."""
        split = {
            "name": self.split,
            "num_samples": len(self.lengths),
            "filenames": [shard.name for shard in self.shards],
            "shard_lengths": [len(shard.lengths) for shard in self.shards],
        }
        return {"splits": {self.split: split}}

    def summary(self) -> dict[str, Any]:
        return {
            "modality": self.modality,
            "unit": self.unit,
            "inputs": self.inputs,
            "shards": len(self.shards),
            **self._sums(),
            "histogram": [list(bar) for bar in histogram(self.lengths)],
            "skipped": dict(self._reasons()),
            "changed": dict(self._changes()),
            "ignored": dict(sorted(self.ignored.items())),
        }

    def words(self, job: Job) -> list[str]:
        """The summary for people."""
        sums = self._sums()
        total = f"{sums.get('length', 0):,.0f} {self.unit}, " if self.adds_up else ""
        if self.unit == "seconds":
            total = f"{sums['length'] / 3600:,.2f} hours, "
        first, last = self.shards[0].name, self.shards[-1].name
        names = first if len(self.shards) == 1 else f"{first} to {last}"
        lines = [
            f"{job.folder / names}: {counted(len(self.shards), 'shard')}, "
            f"{size(sums['bytes'])}, {total}{counted(sums['samples'], 'sample')} of "
            f"{counted(self.inputs, 'input')}",
            "",
            *_drawn(histogram(self.lengths), self.unit),
        ]
        reasons = self._reasons()
        if reasons:
            lines += ["", f"skipped ({job.folder / SKIPPED} has them all):"]
        for reason, count in reasons:
            name, _, detail = next(found for found in self.skipped if found[1] == reason)
            lines.append(
                f"  {count:,} x {reason}, such as {name}{f' ({detail})' if detail else ''}"
            )
        changes = self._changes()
        if changes:
            lines += ["", "changed:", *(f"  {count:,} x {change}" for change, count in changes)]
        if self.ignored:
            kinds = _frequent_first(self.ignored)
            shown = ", ".join(f"{count:,} {kind}" for kind, count in kinds[:8])
            lines.append(f"files of another kind: {shown}{', ...' if len(kinds) > 8 else ''}")
        return lines

    def _sums(self) -> dict[str, Any]:
        return {
            "samples": len(self.lengths),
            "bytes": sum(shard.bytes for shard in self.shards),
            **self._total(self.lengths),
        }

    def _total(self, lengths: Sequence[float] | np.ndarray) -> dict[str, float]:
        return {"length": round(float(np.sum(lengths)), 3)} if self.adds_up else {}

    def _reasons(self) -> list[tuple[str, int]]:
        return _frequent_first(Counter(reason for _, reason, _ in self.skipped))

    def _changes(self) -> list[tuple[str, int]]:
        total = Counter[str]()
        for shard in self.shards:
            total.update(shard.changes)
        return sorted(total.items())


def finish(job: Job, totals: Totals, lines: Sequence[str]) -> None:
    """Write what lies beside the shards.

    Args:
        lines: the summary for people.
    """
    names = ("name", "reason", "detail")
    skipped = [json.dumps(dict(zip(names, entry, strict=True))) + "\n" for entry in totals.skipped]
    write_atomically(job.folder / SKIPPED, "".join(skipped))
    write_atomically(job.folder / INFO, json.dumps(totals.info(), indent=1) + "\n")
    write_atomically(job.folder / INDEX, json.dumps(totals.index(), indent=1) + "\n")
    write_atomically(job.folder / SUMMARY, json.dumps(totals.summary(), indent=1) + "\n")
    write_atomically(job.state / _WORDS, json.dumps(list(lines)))


def finished(job: Job) -> list[str]:
    """The summary for people, if all is written; or nothing."""
    try:
        lines: list[str] = json.loads((job.state / _WORDS).read_text("utf-8"))
        shards = json.loads((job.folder / INDEX).read_text("utf-8"))["shardlist"]
        whole = all((job.folder / s["url"]).stat().st_size == s["filesize"] for s in shards)
    except FileNotFoundError:
        return []
    return lines if whole else []


def _frequent_first(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))


def none_left(skipped: Sequence[Skipped]) -> UserError:
    """The error of sources of which nothing is left."""
    if not skipped:
        return UserError("SOURCE: nothing of it can be packed: there is nothing in it")
    return UserError(f"SOURCE: nothing of it can be packed: {reasons_of(skipped)}")


def histogram(lengths: np.ndarray) -> list[tuple[float, float, int]]:
    """From, to, and how many; the last bar has all that is longer, too."""
    low, high = float(lengths.min()), float(np.quantile(lengths, 0.99))
    step = round_step((high - low) / _BARS)
    first = float(np.floor(low / step))
    bars = max(int(np.ceil(high / step) - first), 1)
    places = (lengths / step - first).astype(np.int64).clip(0, bars - 1)
    counts = np.bincount(places, minlength=bars)
    edges = [round((first + i) * step, 6) for i in range(bars + 1)]
    edges[-1] = max(edges[-1], round(float(lengths.max()), 6))
    return [(edges[i], edges[i + 1], int(counts[i])) for i in range(bars)]


def _drawn(bars: Sequence[tuple[float, float, int]], unit: str) -> list[str]:
    most = max(count for _, _, count in bars)
    names = [f"{low:g} to {high:g}" for low, high, _ in bars]
    if bars[-1][1] - bars[-1][0] > 1.01 * (bars[0][1] - bars[0][0]):
        names[-1] = f"{bars[-1][0]:g} or more"
    width = max(len(unit), *(len(name) for name in names))
    lines = [f"  {unit:<{width}}  samples"]
    for name, (_, _, count) in zip(names, bars, strict=True):
        bar = "#" * (-(-count * _BAR_WIDTH // most))
        lines.append(f"  {name:<{width}}  {count:>9,}  {bar}".rstrip())
    return lines
