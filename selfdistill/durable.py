"""Files that survive a crash: whole, or not there."""

import errno
import os
from contextlib import suppress
from pathlib import Path


def write_synced(path: Path, content: str | bytes) -> None:
    """Write a file (text as UTF-8) and wait until it is on the disk."""
    with open(path, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())


def sync_file(path: Path) -> None:
    """Wait until what a file holds is on the disk."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on the disk, where the file system knows how to."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # folders shared with a virtual machine, or by a server
            error.filename = str(path)
            raise
    finally:
        os.close(descriptor)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace a file (text as UTF-8) so that a crash leaves either the old content or the new one.

    Raises:
        OSError: the file, which it names, cannot be written; the old content is untouched.
    """
    writing = path.with_name(f".{path.name}.writing")
    try:
        write_synced(writing, content)
        os.rename(writing, path)
    except BaseException as error:
        with suppress(OSError):
            writing.unlink()
        if isinstance(error, OSError):
            error.filename = str(path)  # a disk that is full names none
        raise
    sync_folder(path.parent)
