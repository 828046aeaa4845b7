"""The class of a sample from the folder that its file lies in."""

import json
from functools import cache
from pathlib import Path

from selfdistill.errors import UserError
from selfdistill.folders import as_text
from selfdistill.packing.declaration import Job, Piece, option
from selfdistill.packing.folder import put_beside
from selfdistill.packing.inputs import Inputs

CLASSES = "classes.json"
FROM_FOLDERS = "folder"


def labels_option() -> str:
    """The option ``labels`` of a modality's packing, as a dataclass field."""
    found: str = option(
        "",
        f"{FROM_FOLDERS}: the first folder below a SOURCE is the class, numbered in the order of "
        f"the names, which {CLASSES} lists; or such a file, whose numbers are taken (default: no "
        "labels)",
    )
    return found


def write_classes(job: Job, inputs: Inputs) -> None:
    """Write the list of classes beside the shards, where ``job.options.labels`` asks for it.

    Raises:
        UserError: a file lies in no folder, or in one that the given list has not.
    """
    labels = job.options.labels
    if not labels:
        return
    found: set[str] = set()
    for i in range(len(inputs)):
        name, slash, _ = inputs[i].name.partition("/")
        if not slash:
            raise UserError(
                f"--labels: '{inputs[i].path}' lies in no folder of a class; name the folder above "
                "the classes"
            )
        found.add(as_text(name))
    classes = sorted(found) if labels == FROM_FOLDERS else _given(Path(labels))
    unknown = sorted(found - set(classes))
    if unknown:
        raise UserError(
            f"--labels: {labels} has no class '{unknown[0]}' ({len(unknown)} such folders); take "
            "the list of the training set, or folders of its classes only"
        )
    put_beside(job, CLASSES, json.dumps(classes, indent=0, ensure_ascii=False) + "\n")


def class_member(job: Job, piece: Piece) -> dict[str, bytes]:
    """The ``cls`` member of a sample, by extension; empty without ``job.options.labels``."""
    if not job.options.labels:
        return {}
    name = as_text(piece.input.name.partition("/")[0])
    return {"cls": str(_numbers(job.beside / CLASSES)[name]).encode()}


def _given(path: Path) -> list[str]:
    try:
        classes = json.loads(path.read_text("utf-8"))
        json.dumps(classes, ensure_ascii=False).encode()  # ValueError where UTF-8 cannot hold one
    except (OSError, ValueError) as error:
        raise UserError(
            f"--labels: cannot read '{path}' ({error}); write '{FROM_FOLDERS}', or name a "
            f"{CLASSES} that packing wrote"
        ) from error
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise UserError(f"--labels: '{path}' is no list of names; name a {CLASSES}")
    return classes


@cache
def _numbers(path: Path) -> dict[str, int]:
    return {name: number for number, name in enumerate(json.loads(path.read_text("utf-8")))}
