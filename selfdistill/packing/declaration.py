"""What a modality declares so that its raw data can be packed."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from selfdistill.packing.entries import Entry, Input
from selfdistill.packing.inputs import Inputs

PIECE = np.dtype(
    [
        ("input", "i4"),
        ("lot", "i4"),
        ("number", "i4"),
        ("part", "i4"),
        ("start", "i8"),
        ("stop", "i8"),
        ("size", "i4"),
        ("length", "f4"),
    ]
)
"""A sample to be: of which input and lot, its number in the input (-1: the whole of it), the part
of that, where it lies in the input or its lot's spill, the bytes it will have, about, and its
length."""

Skipped = tuple[str, str, str]
"""Name of an input or of a part of it, reason, detail."""


@dataclass(frozen=True)
class Job:
    """What the whole of the work has in common.

    Attributes:
        folder: what is written to.
        options: the modality's, see ``Packing.options``.
        seed: of the order and of all else that is drawn.
    """

    folder: Path
    options: Any
    seed: int = 0

    @property
    def state(self) -> Path:
        """Where unfinished work is kept."""
        return self.folder / ".pack"

    @property
    def beside(self) -> Path:
        """What will lie beside the shards when they are finished."""
        return self.state / "beside"

    def spill(self, lot: int) -> Path:
        """What a lot's survey kept for ``Packing.read``."""
        return self.state / f"lot-{lot:06d}.spill"


@dataclass(frozen=True)
class Lot:
    """Work for one worker: samples are found in it without looking at other lots.

    Attributes:
        number: from 0.
        items: picklable; of default lots pairs of an input's number and the ``Input``.
        size: bytes of input, for the progress bar.
    """

    number: int
    items: Any
    size: int


@dataclass(frozen=True)
class Survey:
    """What was found in a lot.

    Attributes:
        pieces: ``PIECE`` [n]; ``lot`` need not be set.
        skipped: what cannot be packed.
        spill: bytes that ``Packing.read`` will want.
    """

    pieces: np.ndarray
    skipped: list[Skipped]
    spill: bytes = b""


@dataclass(frozen=True)
class Piece:
    """A sample to be, with its input and key; see ``PIECE``."""

    input: Input
    key: str
    lot: int
    number: int
    start: int
    stop: int
    size: int
    length: float


@dataclass(frozen=True)
class Sample:
    """What goes into a shard.

    Attributes:
        members: by extension.
        length: in ``Packing.unit``.
        change: what was done to it that the options do not ask for, in words for the summary.
    """

    members: Mapping[str, bytes]
    length: float
    change: str = ""


def default_lots(job: Job, inputs: Inputs) -> Iterator[Lot]:
    """The inputs in their order, some at a time."""
    per_lot = min(max(len(inputs) // 64, 1), 1024)
    for number, first in enumerate(range(0, len(inputs), per_lot)):
        chosen = range(first, min(first + per_lot, len(inputs)))
        items = [(i, inputs[i]) for i in chosen]
        yield Lot(number, items, sum(max(item.size, 0) for _, item in items))


def _nothing(*_: Any) -> None:
    pass


def _no_settings(job: Job) -> Sequence[str]:
    return ()


@dataclass(frozen=True)
class Packing:
    """How a modality's raw data become samples. Everything is a function of the job and the inputs
    alone, so that packing can be repeated. It is picklable: every callable is a module's.

    Attributes:
        suffixes: ends of the names of files that are taken from folders, lower case.
        options: a frozen dataclass of what is asked for on the command line. Each field has a
            default, and ``metadata["help"]``.
        unit: what ``length`` counts, such as seconds; it must be that of ``Modality.length`` where
            the modality has one.
        read: a piece to its sample; ``BadSample`` where there is none in it.
        survey: finds the pieces of a lot.
        lots: cuts the inputs into lots.
        manifests: suffix of a file that names inputs to what reads it. ``UserError`` where it
            cannot be read.
        check: refuses (``UserError``) options that cannot work.
        prepare: writes what goes beside the shards (a tokenizer) into ``Job.beside``, before
            anything is surveyed; ``UserError`` where it cannot.
        adds_up: whether the sum of all lengths means anything.
        settings: the keys of ``pretrain`` that follow from what was packed.
    """

    suffixes: Sequence[str]
    options: type
    unit: str
    read: Callable[[Job, Piece], Sample]
    survey: Callable[[Job, Lot], Survey]
    lots: Callable[[Job, Inputs], Iterable[Lot]] = default_lots
    manifests: Mapping[str, Callable[[Path], Iterator[Entry]]] = field(default_factory=dict)
    check: Callable[[Any], None] = _nothing
    prepare: Callable[[Job, Inputs], None] = _nothing
    adds_up: bool = True
    settings: Callable[[Job], Sequence[str]] = _no_settings


def option(default: Any, words: str) -> Any:
    """A field of ``Packing.options`` with its help on the command line."""
    return field(default=default, metadata={"help": words})


def config_value(path: Path) -> str:
    """A path as the value of a ``key=value`` override, or in a list of them."""
    plain = re.fullmatch(r"[\w ./~+@=-]+", str(path))
    return str(path) if plain else json.dumps(str(path), ensure_ascii=False)
