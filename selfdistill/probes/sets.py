"""Labelled sets of samples, as a config or a command line names them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from selfdistill.config import TaskConfig
from selfdistill.data.elsewhere.address import Access
from selfdistill.data.locations import resolve
from selfdistill.data.plain import Part, Samples
from selfdistill.data.shards import ShardSet
from selfdistill.data.tally import read_labels
from selfdistill.errors import UserError
from selfdistill.probes.cache import numbers_digest, shards_digest
from selfdistill.probes.features import UNLABELLED
from selfdistill.probes.labels import Named, apply_labels, check_all_labelled, read_label_file
from selfdistill.probes.splits import validation_split

TEST_SHARE = 0.2
"""Of a single set."""


@dataclass(frozen=True)
class Split:
    """Samples with their labels.

    Attributes:
        samples: to read.
        labels: int64 [n], ``UNLABELLED`` where there is none.
        identity: plain values that tell them from others.
        members: of the extension that is asked for in place of classes.
    """

    samples: Samples
    labels: np.ndarray
    identity: Mapping[str, Any]
    members: Sequence[bytes] = ()


@dataclass(frozen=True)
class LabelledSet:
    """A training and a test split.

    Attributes:
        name: in the output.
        named: in error messages.
        classes: names by number; empty: they are called by their numbers.
    """

    name: str
    named: Named
    train: Split
    test: Split
    classes: Sequence[str] = ()


@dataclass(frozen=True)
class Opener:
    """Opens sets of shards for one pipeline.

    Attributes:
        extensions: of the members that are read.
        access: to shards elsewhere.
        labels: a file of labels in place of the ``cls`` members.
        seed: of the split of a single set.
        member: extension of what is read in place of classes, which are all 0 then.
    """

    extensions: Sequence[str]
    access: Access
    labels: Path | None = None
    seed: int = 0
    member: str = ""

    def of_task(self, name: str, task: TaskConfig) -> LabelledSet:
        """A labelled set of a config; raises ``UserError``."""
        return self.pair(name, task.train, task.test, Named.of_task(name))

    def pair(
        self, name: str, train: Sequence[str], test: Sequence[str], named: Named
    ) -> LabelledSet:
        """Two splits that are named; raises ``UserError`` where they cannot be read."""
        opened = [self._open(train, named.train), self._open(test, named.test)]
        labels, classes = self._labels([shards for shards, _ in opened])
        splits = [
            Split(shards, found, {"shards": digest}, self._members(shards, key))
            for (shards, digest), found, key in zip(
                opened, labels, (named.train, named.test), strict=True
            )
        ]
        return LabelledSet(name, named, splits[0], splits[1], classes)

    def single(self, name: str, data: Sequence[str], named: Named) -> LabelledSet:
        """One set, of whose classes ``TEST_SHARE`` each is the test split, by chance."""
        shards, digest = self._open(data, named.train)
        (labels,), classes = self._labels([shards])
        check_all_labelled(named.train, labels, named.remedy)
        if len(labels) < 2:
            raise UserError(
                f"{named.train}: a single sample leaves none for the test; give more samples"
            )
        members = self._members(shards, named.train)
        parts = [
            Split(
                Part(shards, numbers),
                labels[numbers],
                {"shards": digest, "numbers": numbers_digest(numbers)},
                [members[i] for i in numbers] if members else (),
            )
            for numbers in validation_split(labels, self.seed, TEST_SHARE)
        ]
        return LabelledSet(name, named, parts[0], parts[1], classes)

    def _open(self, patterns: Sequence[str], key: str) -> tuple[ShardSet, str]:
        locations = resolve(patterns, key, self.access)
        extensions = (*self.extensions, self.member) if self.member else self.extensions
        shards = ShardSet(locations, extensions, key, self.access)
        return shards, shards_digest(locations, shards.keys)

    def _members(self, shards: ShardSet, key: str) -> list[bytes]:
        if not self.member:
            return []
        found = [shards.read(i)[1].get(self.member, b"") for i in range(len(shards))]
        missing = sum(not content.decode("utf-8", "replace").strip() for content in found)
        if missing:
            raise UserError(
                f"{key}: {missing} of {len(found)} samples have no .{self.member} member; give "
                "every sample one"
            )
        return found

    def _labels(self, sets: Sequence[ShardSet]) -> tuple[list[np.ndarray], list[str]]:
        if self.member:
            return [np.zeros(len(shards), dtype=np.int64) for shards in sets], []
        if self.labels is not None:
            given = read_label_file(self.labels)
            return apply_labels(given, [shards.keys for shards in sets], self.labels)
        return [labels_of(shards) for shards in sets], []


def labels_of(shards: ShardSet) -> np.ndarray:
    """The label of every sample, int64, ``UNLABELLED`` where there is none; none is decoded."""
    found = read_labels(shards, range(len(shards)))
    return np.array([UNLABELLED if label is None else label for label in found], dtype=np.int64)
