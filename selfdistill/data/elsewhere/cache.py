"""Files from elsewhere, kept on this machine up to a bound, for all processes of its user.

A file is there whole or not at all: it is written under another name, which is locked by the one
process that writes it and means nothing to the others.
"""

import errno
import fcntl
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from selfdistill.errors import UserError

POLL = 0.1
WAIT_SAID = 10.0
"""Seconds after which somebody who waits for another process is told so."""
SPARE = 64 << 20
"""Bytes of the disk that are left to others."""
PARTIAL, NOTE, LOCK = ".part", ".note", ".lock"
NEW = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
FULL = (errno.ENOSPC, errno.EDQUOT)
OURS = re.compile(r"[0-9a-f]{32}-[A-Za-z0-9._-]+")
"""Names of what may be dropped; the folder may hold other things too."""

log = logging.getLogger(__name__)


class NoRoom(Exception):
    """There is no space for a file, neither within the bound nor by dropping others."""


class Cache:
    """A folder of files by name; the names match ``OURS``, and nothing else in it is touched.

    Args:
        folder: made where it is not there, for its user alone.
        bound: bytes that all files may have together, notes apart.

    Raises:
        UserError: the folder cannot be used.
    """

    def __init__(self, folder: Path, bound: int) -> None:
        self.folder = folder
        self.bound = bound
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise self._unusable(error) from error

    def has(self, name: str) -> bool:
        return (self.folder / name).exists()

    def open(
        self, name: str, size: int | None, fill: Callable[[int], None], patient: bool = False
    ) -> int:
        """A descriptor of a file, which ``fill`` writes where it is not there.

        Other processes may drop the file at any time, but not what is open.

        Args:
            name: stands for one content.
            size: bytes that it will have; None: not known before.
            fill: given a descriptor, writes the content; nothing is kept of it where it raises.
            patient: say nothing while another process is at it.

        Raises:
            NoRoom: it does not fit.
            UserError: the folder cannot be used.
        """
        since = said = time.monotonic()
        try:
            while (found := self._found(name, size)) is None:
                if self._made(name, size, fill):
                    continue
                now = time.monotonic()
                if not patient and now - since > WAIT_SAID and (said == since or now - said > 60):
                    log.warning("still waiting for another process that downloads %s", name)
                    said = now
                time.sleep(POLL)
        except OSError as error:
            if error.errno in FULL:
                raise NoRoom from error
            raise self._unusable(error) from error
        return found

    def note(self, name: str) -> bytes | None:
        """What ``keep_note`` was given under this name, if it is still there."""
        with suppress(OSError):
            return (self.folder / (name + NOTE)).read_bytes()
        return None

    def keep_note(self, name: str, content: bytes) -> None:
        """Keep something small; it does not matter if that fails."""
        writing = self.folder / f"{name}{NOTE}.{os.getpid()}{PARTIAL}"
        with suppress(OSError):
            with open(os.open(writing, NEW, 0o600), "wb") as file:
                file.write(content)
            os.replace(writing, self.folder / (name + NOTE))

    @contextmanager
    def turn(self, name: str, why: str) -> Iterator[None]:
        """Wait until no other process of this user is in here under the same name.

        Args:
            why: said to those who wait long.

        Raises:
            OSError: the folder cannot be used.
        """
        began, said = time.monotonic(), False
        descriptor = os.open(self.folder / f"{name}{LOCK}", NEW, 0o600)
        try:
            while not _locked(descriptor):
                if not said and time.monotonic() - began > WAIT_SAID:
                    log.warning("%s; this one waits for it", why)
                    said = True
                time.sleep(POLL)
            yield
        finally:
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)

    def _found(self, name: str, size: int | None) -> int | None:
        path = self.folder / name
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        about = os.fstat(descriptor)
        if about.st_uid != os.geteuid():
            os.close(descriptor)
            raise PermissionError(errno.EPERM, f"'{name}' in it belongs to somebody else")
        if size is not None and about.st_size != size:
            os.close(descriptor)
            path.unlink(missing_ok=True)
            return None
        with suppress(OSError):  # dropped since
            os.utime(path)
        return descriptor

    def _made(self, name: str, size: int | None, fill: Callable[[int], None]) -> bool:
        """Write a file; False: somebody else is at it."""
        writing = self.folder / (name + PARTIAL)
        with _claimed(writing) as descriptor:
            if descriptor is None:
                return False
            if not self.has(name):
                if size is not None:
                    self._make_room(writing, descriptor, size)
                fill(descriptor)
                if size is None:
                    self._make_room(writing, descriptor, os.fstat(descriptor).st_size)
                os.fsync(descriptor)
                os.rename(writing, self.folder / name)
        return True

    def _make_room(self, writing: Path, descriptor: int, size: int) -> None:
        """Drop the files used longest ago until ``size`` bytes fit, and give these to ``writing``,
        so that the others count them too."""
        with _alone(self.folder / LOCK):
            for _, _, path in self._files(PARTIAL):
                if path != writing:
                    with _claimed(path):  # where nobody writes it any more, this removes it
                        pass
            files = sorted(self._files(""))
            parts = sum(length for _, length, path in self._files(PARTIAL) if path != writing)
            taken = sum(length for _, length, _ in files)
            free = shutil.disk_usage(self.folder).free + os.fstat(descriptor).st_blocks * 512
            over = max(taken + parts + size - self.bound, size + SPARE - free)
            if over > taken:
                raise NoRoom
            for _, length, path in files:
                if over <= 0:
                    break
                path.unlink(missing_ok=True)
                over -= length
            os.ftruncate(descriptor, size)

    def _files(self, kind: str) -> Iterator[tuple[float, int, Path]]:
        """Time of the last use, bytes and path of all files with this suffix; "": of whole ones."""
        for entry in os.scandir(self.folder):
            suffix = next((s for s in (NOTE, PARTIAL) if entry.name.endswith(s)), "")
            if suffix != kind or not OURS.fullmatch(entry.name):
                continue
            with suppress(FileNotFoundError):
                if entry.is_file(follow_symlinks=False):
                    found = entry.stat(follow_symlinks=False)
                    yield found.st_mtime, found.st_size, self.folder / entry.name

    def _unusable(self, error: OSError) -> UserError:
        return UserError(
            f"data.cache_dir: cannot use '{self.folder}' ({error.strerror}); name a folder of your "
            "own that can be written"
        )


@contextmanager
def _claimed(path: Path) -> Iterator[int | None]:
    """A descriptor of a file that nobody else has; None: somebody has it. The file is removed at
    the end unless it was renamed."""
    descriptor = os.open(path, NEW, 0o600)
    mine = False
    try:
        # its former owner may have renamed or removed it
        mine = _locked(descriptor) and _is(path, descriptor)
        yield descriptor if mine else None
    finally:
        if mine and _is(path, descriptor):
            path.unlink(missing_ok=True)
        os.close(descriptor)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    descriptor = os.open(path, NEW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        # a child forked meanwhile has the descriptor too, and would keep the lock
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    with suppress(BlockingIOError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def _is(path: Path, descriptor: int) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(descriptor))
    return False
