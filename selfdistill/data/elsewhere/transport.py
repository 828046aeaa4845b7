"""What every way to a file elsewhere has to offer, and how it can fail."""

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

CHUNK = 1 << 20

Result = TypeVar("Result")


class Broken(Exception):
    """It may work when tried again.

    Args:
        why: for the user.
        wait: seconds that the server asks to wait before.
    """

    def __init__(self, why: str, wait: float = 0.0) -> None:
        super().__init__(why)
        self.wait = wait


class Refused(Exception):
    """It will not work when tried again; the text says why and what to do."""


class Changed(Exception):
    """The file is another one than it was."""


def in_background(action: Callable[..., Result], *arguments: object) -> Future[Result]:
    """The result to come of a thread that the end of the program does not wait for."""
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(action(*arguments))
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


@dataclass(frozen=True)
class Stamp:
    """What tells one state of a file from another.

    Attributes:
        size: bytes; None: the server does not say.
        tag: what else the server says of this state of it; empty: nothing.
        parts: whether parts of it can be read.
    """

    size: int | None
    tag: str
    parts: bool


class Transport(ABC):
    """One way to one file. Every method raises ``Broken``, ``Refused`` or ``Changed``.

    Attributes:
        connections: how many parts may be read at the same time.
    """

    connections: int = 1

    @abstractmethod
    def stamp(self, renewed: bool = False) -> Stamp:
        """The state that the file is in.

        Args:
            renewed: ask, even if a listing has told.
        """

    @abstractmethod
    def part(self, start: int, stop: int, stamp: Stamp) -> bytes:
        """Bytes ``start`` to ``stop - 1``, all of them, of the file in the state ``stamp``, which
        says that this can be done."""

    @abstractmethod
    def whole(self) -> Generator[bytes]:
        """All bytes in order; raises at the end where they are fewer than announced."""
