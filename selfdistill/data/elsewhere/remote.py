"""Bytes of files elsewhere, asked for again where a connection breaks."""

import hashlib
import logging
import os
import random
import threading
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future
from contextlib import closing
from itertools import islice
from typing import TypeVar

from selfdistill.data.elsewhere.address import WEB, Access, Remote
from selfdistill.data.elsewhere.piped import PipedFile
from selfdistill.data.elsewhere.retries import add_retry
from selfdistill.data.elsewhere.stores import StoredFile
from selfdistill.data.elsewhere.transport import (
    Broken,
    Changed,
    Refused,
    Stamp,
    Transport,
    in_background,
)
from selfdistill.data.elsewhere.web import WebFile
from selfdistill.data.sources import changed
from selfdistill.errors import SelfdistillError, UserError
from selfdistill.redaction import PIPE, without_secrets

ATTEMPTS = 5
FIRST_PAUSE = 1.0
"""Seconds before the second attempt; twice as long before each further one."""
PART = 8 << 20
"""Bytes that are asked for, and asked for again, together."""

Result = TypeVar("Result")

log = logging.getLogger(__name__)
_chance = random.Random()  # not the generator that a run's seed may govern


class TooLarge(Exception):
    """There are more bytes than were wanted."""


class RemoteFile:
    """One file elsewhere.

    Its methods raise ``UserError`` where the file cannot be had, and ``SelfdistillError`` where all
    attempts failed or the file has changed.

    Args:
        remote: the file.
        key: the config's name of it, for the error messages.
        access: how to reach it.
    """

    def __init__(self, remote: Remote, key: str, access: Access) -> None:
        self.remote = remote
        self.key = key
        self.access = access

    def stamp(self) -> Stamp:
        """The state that it is in, as far as a listing has told already."""
        return self._try(lambda: self._transport().stamp())

    def check(self, stamp: Stamp) -> None:
        """Refuse a file that is no longer in the state ``stamp``."""
        if self._try(lambda: self._transport().stamp(renewed=True)) != stamp:
            raise changed(self.key, str(self.remote))

    def content(self, most: int) -> bytes | None:
        """All of a small file; None: it cannot be had.

        Raises:
            TooLarge: it has more than ``most`` bytes.
        """

        def read() -> bytes | None:
            found = bytearray()
            try:
                for chunk in self._transport().whole():
                    found += chunk
                    if len(found) > most:
                        raise TooLarge
            except Refused:  # servers differ in how they say that there is none
                return None
            return bytes(found)

        return self._try(read)

    def part(self, start: int, stop: int, stamp: Stamp) -> bytes:
        """Bytes ``start`` to ``stop - 1`` of the file in the state ``stamp``, all of them."""
        return self._part(start, stop, stamp, threading.Event())

    def _part(self, start: int, stop: int, stamp: Stamp, abandoned: threading.Event) -> bytes:
        return self._try(lambda: self._transport().part(start, stop, stamp), abandoned)

    def parts(self, stamp: Stamp) -> Generator[bytes]:
        """The whole file in order, asked for some parts ahead; ``stamp`` says that it has parts."""
        size = stamp.size or 0
        starts = iter(range(0, size, PART))
        abandoned = threading.Event()

        def ask(count: int) -> list[Future[bytes]]:
            return [
                in_background(self._part, start, min(start + PART, size), stamp, abandoned)
                for start in islice(starts, count)
            ]

        waiting = deque(ask(self._transport().connections))
        try:
            while waiting:
                yield waiting.popleft().result()
                waiting.extend(ask(1))
        finally:
            abandoned.set()

    def download(
        self,
        descriptor: int,
        stamp: Stamp,
        most: int,
        missing: Callable[[str], str] = lambda digest: "",
    ) -> tuple[int, str]:
        """Write the whole file in the state ``stamp`` into an open file, from its start.

        Args:
            missing: given the sha256 of what was written, says why this cannot be all, or nothing;
                asked where no size was announced, because then a connection that breaks looks like
                the end.

        Returns:
            Its bytes and their sha256, hexadecimal.

        Raises:
            TooLarge: it has more than ``most`` bytes.
            OSError: they cannot be written.
        """

        def write(chunks: Generator[bytes]) -> tuple[int, str]:
            total, digest = 0, hashlib.sha256()
            with closing(chunks):
                for chunk in chunks:
                    if total + len(chunk) > most:
                        raise TooLarge
                    total += _write(descriptor, chunk, total)
                    digest.update(chunk)
            os.ftruncate(descriptor, total)
            return total, digest.hexdigest()

        if stamp.parts:
            return write(self.parts(stamp))

        def whole() -> tuple[int, str]:
            size, digest = write(self._transport().whole())
            if stamp.size is None and (why := missing(digest)):
                raise Broken(
                    f"{size:,} bytes came, how many there are was not announced, and they are not "
                    f"all ({why}); if the file itself ends there, make it again"
                )
            return size, digest

        size, digest = self._try(whole)
        if stamp.size is not None and stamp.size != size:
            raise changed(self.key, str(self.remote))
        return size, digest

    def _transport(self) -> Transport:
        timeout = self.access.timeout
        if self.remote.is_command:
            return PipedFile(self.remote.url.removeprefix(PIPE), timeout)
        kind = WebFile if self.remote.scheme in WEB else StoredFile
        return kind(self.remote.url, timeout)

    def _try(
        self, action: Callable[[], Result], abandoned: threading.Event | None = None
    ) -> Result:
        try:
            return persistently(action, self.remote, self.key, abandoned)
        except Changed:
            raise changed(self.key, str(self.remote)) from None


def persistently(
    action: Callable[[], Result],
    remote: Remote,
    key: str,
    abandoned: threading.Event | None = None,
) -> Result:
    """What ``action`` returns, tried again where a connection broke.

    Args:
        remote, key: what it is about, for the messages.
        abandoned: when set, nobody waits for the result any more.

    Raises:
        UserError: it will not work.
        SelfdistillError: it has not worked in all attempts.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return action()
        # causes are left out, because their texts may hold credentials
        except Refused as error:
            raise UserError(
                f"{key}: cannot read '{remote}': {without_secrets(str(error))}"
            ) from None
        except Broken as error:
            why, wait = without_secrets(str(error))[:300], error.wait
        if attempt == ATTEMPTS or (abandoned is not None and abandoned.is_set()):
            break
        pause = max(FIRST_PAUSE * 2 ** (attempt - 1) * _chance.uniform(0.75, 1.25), wait)
        log.warning("%s: %s; attempt %d of %d in %.1f s", remote, why, attempt + 1, ATTEMPTS, pause)
        add_retry()
        (abandoned or threading.Event()).wait(pause)
    raise SelfdistillError(
        f"{key}: cannot read '{remote}': {ATTEMPTS} attempts failed, the last one because: {why}"
    )


def _write(descriptor: int, data: bytes, start: int) -> int:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, start)
        start, view = start + written, view[written:]
    return len(data)
