"""What goes into a job: files, and parts of files."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """What a manifest names.

    Attributes:
        path: of the file.
        name: of the sample to be, a relative path.
        start, stop: the part of the file, in the modality's unit.
    """

    path: str
    name: str
    start: float = 0.0
    stop: float = math.inf


@dataclass(frozen=True)
class Input(Entry):
    """A file, or a part of one, as it was when packing began.

    Attributes:
        size: bytes of the file; -1: there is none.
        mtime: nanoseconds.
        key: the base of its samples' keys, unique.
    """

    size: int = -1
    mtime: int = 0
    key: str = ""
