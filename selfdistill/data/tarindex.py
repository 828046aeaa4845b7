"""Where the samples of one tar file are.

Samples are grouped the WebDataset way: the key is the path up to the first dot of the file name,
the rest is the extension. Because the members are indexed before any is read, those of one sample
need not lie side by side.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np

LABEL = "cls"
"""The extension of a sample's class, kept beside those that are asked for."""

BLOCK = 512
"""Everything in a tar starts at a multiple of so many bytes."""
MEMBER_BYTES = 1 << 30
"""Of the largest member that is read."""
MEMBER = np.dtype([("extension", "u1"), ("block", "u4"), ("size", "i4")])


class Faults:
    """Faults of one shard, equal ones counted together.

    Attributes:
        cut: why the rest of it is not read; empty: it is read to its end.
    """

    def __init__(self) -> None:
        self.cut = ""
        self._found: dict[str, tuple[int, str]] = {}

    def add(self, reason: str, name: str = "", times: int = 1) -> None:
        count, first = self._found.get(reason, (0, name))
        self._found[reason] = count + times, first

    def reasons(self) -> list[str]:
        return [
            f"{reason} ({count} members, first '{first}')" if first else reason
            for reason, (count, first) in self._found.items()
        ]


@dataclass(frozen=True)
class TarIndex:
    """The samples of one shard in the order of their first members.

    As small as it gets, because a run keeps those of all shards in memory; and arrays throughout,
    because a reference count beside the data would make forked workers copy it.

    Attributes:
        names: uint8, the keys, one after the other.
        name_ends: uint32 [n], where each key ends in ``names``.
        first: uint32 [n + 1]; sample i owns ``members[first[i]:first[i + 1]]``.
        members: ``MEMBER`` [m].
        skipped: samples that have no wanted member.
        others: some of the extensions that were not wanted.
        faults: what is wrong with the shard.
    """

    names: np.ndarray
    name_ends: np.ndarray
    first: np.ndarray
    members: np.ndarray
    skipped: int
    others: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.name_ends)

    def name(self, i: int) -> str:
        """The key of sample ``i``."""
        return _name(self.names, self.name_ends, i)

    def places(self, i: int) -> list[tuple[int, int, int]]:
        """Number of the extension, offset and size of each member of sample ``i``."""
        members = self.members[self.first[i] : self.first[i + 1]]
        return [(int(e), int(block) * BLOCK, int(size)) for e, block, size in members]


@dataclass(frozen=True)
class Contents:
    """All samples of one shard in the order of their first members, whatever their extensions.

    Attributes:
        names, name_ends, first: as in ``TarIndex``.
        extension: uint32 [m], the number of each member's extension in ``extensions``.
        block: uint32 [m], where its bytes start, in units of ``BLOCK``.
        size: int32 [m].
        extensions: lower case, no dot.
        repeated: members left out because their sample has one of the same extension: the number
            of the extension, how many, the name of the first.
        faults: what is wrong with the shard besides.
    """

    names: np.ndarray
    name_ends: np.ndarray
    first: np.ndarray
    extension: np.ndarray
    block: np.ndarray
    size: np.ndarray
    extensions: list[str]
    repeated: list[tuple[int, int, str]]
    faults: list[str]

    def __len__(self) -> int:
        return len(self.name_ends)

    def select(self, extensions: Sequence[str]) -> tuple[TarIndex, np.ndarray]:
        """The samples that have a member with one of ``extensions``.

        Args:
            extensions: lower case, no dot; members with other extensions are left out, except the
                label.

        Returns:
            Their index, and bool [n], which samples they are.
        """
        wanted = dict.fromkeys(extension for extension in extensions if extension != LABEL)
        number = {extension: i for i, extension in enumerate((*wanted, LABEL))}
        unwanted = len(number)
        of_ours = [number.get(extension, unwanted) for extension in self.extensions]
        ours = np.array(of_ours, np.uint8)[self.extension]  # [m]
        owner = np.repeat(np.arange(len(self)), np.diff(self.first))  # [m]
        kept = np.zeros(len(self), bool)
        kept[owner[ours < number[LABEL]]] = True
        chosen = (ours < unwanted) & kept[owner]
        members = np.empty(int(chosen.sum()), MEMBER)
        members["extension"] = ours[chosen]
        members["block"], members["size"] = self.block[chosen], self.size[chosen]
        lengths = np.diff(self.name_ends, prepend=np.uint32(0))
        index = TarIndex(
            names=self.names[np.repeat(kept, lengths)],
            name_ends=np.cumsum(lengths[kept], dtype=np.uint32),
            first=starts(np.bincount(owner[chosen], minlength=len(self))[kept]),
            members=members,
            skipped=int((~kept).sum()),
            others=sorted({e for e in self.extensions if e not in number})[:8],
            faults=[*self.faults, *self._faults_of(number, owner, kept)],
        )
        return index, kept

    def _faults_of(self, wanted: Collection[str], owner: np.ndarray, kept: np.ndarray) -> list[str]:
        faults = Faults()
        for number, count, name in self.repeated:
            if self.extensions[number] in wanted:
                faults.add("duplicates of an earlier member are skipped", name, count)
        dotted = [e not in wanted and e.rpartition(".")[2] in wanted for e in self.extensions]
        # a picture may have a map beside it, 1.jpg and 1.seg.png
        lost = np.flatnonzero(np.array(dotted, bool)[self.extension] & ~kept[owner])
        if len(lost):
            key = _name(self.names, self.name_ends, int(owner[lost[0]]))
            faults.add(
                "skipped for a dot in the name: the extension starts at the first dot of the file "
                "name, so rename them without other dots",
                f"{key}.{self.extensions[self.extension[lost[0]]]}",
                len(lost),
            )
        return faults.reasons()


def _name(names: np.ndarray, ends: np.ndarray, i: int) -> str:
    start = int(ends[i - 1]) if i else 0
    found: bytes = names[start : int(ends[i])].tobytes()
    return found.decode("utf-8", "backslashreplace")


def starts(counts: Sequence[int] | np.ndarray) -> np.ndarray:
    """Where each of parts of these lengths starts, and the end: uint32 [n + 1]."""
    return np.concatenate([np.zeros(1, np.uint32), np.cumsum(counts, dtype=np.uint32)])
