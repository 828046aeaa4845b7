"""Labels of samples: read from a file, and refused where the probes cannot work with them."""

import csv
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from selfdistill.data.plain import class_number
from selfdistill.errors import UserError
from selfdistill.probes.features import UNLABELLED

SHOWN = 3
"""Examples in a message."""


@dataclass(frozen=True)
class Named:
    """What the user calls the splits and the setting, for the error messages."""

    train: str
    test: str
    few_shot: str
    remedy: str = "give every sample a .cls member that holds its class as an integer from 0"
    classes: Sequence[str] = ()
    """Names by number; empty: classes are called by their numbers."""

    @property
    def is_one_set(self) -> bool:
        """Whether both splits are made of one set: what is in each is not the user's choice."""
        return self.train == self.test

    @classmethod
    def of_task(cls, name: str) -> "Named":
        """A labelled set of a config."""
        return cls(f"eval.tasks.{name}.train", f"eval.tasks.{name}.test", "eval.few_shot_labels")

    def listed(self, classes: Sequence[int] | np.ndarray) -> str:
        """The first ones, and how many more there are."""
        shown = ", ".join(f"'{self.classes[c]}'" if self.classes else str(c) for c in classes[:5])
        return shown + (f" and {len(classes) - 5} more" if len(classes) > 5 else "")


def check_labels(named: Named, train: np.ndarray, test: np.ndarray, few_shot_labels: int) -> None:
    """Refuse labels (int64, ``UNLABELLED`` where there is none) that the probes cannot work with.

    Args:
        few_shot_labels: 0: there is no few-shot probe.

    Raises:
        UserError: it names the split and what to do.
    """
    for key, labels in ((named.train, train), (named.test, test)):
        check_all_labelled(key, labels, named.remedy)
    classes, counts = np.unique(train, return_counts=True)
    if len(classes) < 2:
        raise UserError(
            f"{named.train}: all samples are of class {named.listed(classes)}; "
            "the probes need two classes or more"
        )
    needed = 2 * few_shot_labels  # so many stay after the validation part is taken off
    apart = np.setxor1d(classes, test)
    if named.is_one_set and len(apart):
        setting = f" ({named.few_shot}={few_shot_labels})" if few_shot_labels else ""
        raise UserError(
            f"{named.train}: there are too few samples of class {named.listed(apart)} for two "
            f"splits; each class needs {max(1, needed)} for training{setting} and 1 for the test; "
            "add samples, or leave the class out"
        )
    for key, lacking in (
        (named.test, np.setdiff1d(classes, test)),
        (named.train, np.setdiff1d(test, classes)),
    ):
        if len(lacking):
            raise UserError(
                f"{key}: has no sample of class {named.listed(lacking)}, the other "
                "split has; take both splits from the same classes"
            )
    if counts.max() < 2:
        raise UserError(
            f"{named.train}: every class has a single sample for training, which leaves none to "
            "choose a layer by; add samples"
        )
    scarce = counts < needed
    if scarce.any():
        raise UserError(
            f"{named.train}: there are too few samples of class {named.listed(classes[scarce])}, "
            f"{counts.min()} at the fewest; {named.few_shot}={few_shot_labels} needs {needed} of "
            f"each class; add samples, or lower {named.few_shot}"
        )


def check_all_labelled(key: str, labels: np.ndarray, remedy: str) -> None:
    """Raises ``UserError`` where a label is missing."""
    missing = int((labels == UNLABELLED).sum())
    if missing:
        raise UserError(f"{key}: {missing} of {len(labels)} samples have no label; {remedy}")


def read_label_file(path: Path) -> dict[str, str]:
    """Classes by key, of a .csv or .tsv file (key and class in its first two columns; a first
    line that begins with ``key`` is a heading), or of a .json file (one object). A key whose class
    is empty or of blanks only is left out, as if the file did not name it.

    Raises:
        UserError: it cannot be read, or gives a key two classes.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            is_json = path.suffix.lower() == ".json"
            pairs = _of_json(file.read()) if is_json else _of_rows(path, file)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"--labels: cannot read '{path}': {error}") from error
    found: dict[str, str] = {}
    for key, label in pairs:
        if not label.strip():
            continue
        if found.setdefault(key, label) != label:
            raise UserError(
                f"--labels: '{path}' gives '{key}' two classes, '{found[key]}' and '{label}'"
            )
    if not found:
        raise UserError(f"--labels: '{path}' holds no label; give a key and a class in each line")
    return found


def _of_json(content: str) -> list[tuple[str, str]]:
    given = json.loads(content)
    if not isinstance(given, dict):
        raise ValueError("it is no object of keys and classes")
    for key, label in given.items():
        if isinstance(label, bool) or not isinstance(label, int | str):
            raise ValueError(f"the class of '{key}' is neither an integer nor a name")
    return [(key, str(label)) for key, label in given.items()]


def _of_rows(path: Path, lines: Iterable[str]) -> list[tuple[str, str]]:
    if path.suffix.lower() not in (".csv", ".tsv"):
        raise ValueError("its name must end in .csv, .tsv or .json")
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    rows: list[list[str]] = []
    first = 1  # line of the row: where its quote stays open, the reader's own is that of the end
    try:
        for row in reader:
            if row:
                rows.append(row)
            first = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(
            f"row that begins in line {first}: {error}; close its quotes, and write a quote inside "
            "of them twice"
        ) from error
    if rows and rows[0][0].strip().lower() == "key":
        rows = rows[1:]
    for row in rows:
        if len(row) < 2:
            raise ValueError(f"'{row[0]}' has no class beside it")
    return [(row[0].strip(), row[1].strip()) for row in rows]


def apply_labels(
    given: Mapping[str, str], keys: Sequence[Sequence[str]], path: Path
) -> tuple[list[np.ndarray], list[str]]:
    """Labels int64 of several sets of samples, ``UNLABELLED`` where the file has none.

    Classes that are all integers are taken as they are, others are numbered in their order.

    Returns:
        The labels of each set, and the names of the classes by number (empty: they are integers).

    Raises:
        UserError: the file names samples that are not there, or several by one key.
    """
    there = Counter(key for part in keys for key in part)
    unknown = [key for key in given if key not in there]
    if unknown:
        shown = ", ".join(f"'{key}'" for key in unknown[:SHOWN])
        raise UserError(
            f"--labels: {len(unknown)} of {len(given)} keys of '{path}' are of no sample, such as "
            f"{shown}; keys are names in the shard up to the first dot, such as "
            f"'{next(iter(there))}'"
        )
    shared = [key for key in given if there[key] > 1]
    if shared:
        shown = ", ".join(f"'{key}'" for key in shared[:SHOWN])
        raise UserError(
            f"--labels: {len(shared)} of {len(given)} keys of '{path}' are of several samples, "
            f"such as {shown}; give every sample a key of its own in all shards together, or its "
            "class in a .cls member"
        )
    try:
        numbers = {label: class_number(label) for label in set(given.values())}
        names: list[str] = []
        if min(numbers.values()) < 0 or max(numbers.values()) > np.iinfo(np.int64).max:
            raise UserError(f"--labels: '{path}' has classes below 0 or beyond 64 bits")
    except ValueError:
        names = sorted(set(given.values()))
        numbers = {label: number for number, label in enumerate(names)}
    labels = [
        np.array([numbers[given[k]] if k in given else UNLABELLED for k in part], dtype=np.int64)
        for part in keys
    ]
    return labels, names
