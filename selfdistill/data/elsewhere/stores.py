"""Files in object stores and repositories (s3://, gs://, hf://, ...), through fsspec.

Its file systems retry and time out each in its own way, and some not at all; so every call here has
a limit of its own.
"""

import os
from collections.abc import Callable, Generator
from concurrent.futures import wait
from typing import Any, TypeVar

import fsspec
from fsspec.spec import AbstractFileSystem

from selfdistill.data.elsewhere.transport import Broken, Refused, Stamp, Transport, in_background

PACKAGES = {
    "hf": "huggingface_hub",
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
}
"""What fsspec needs for a scheme."""
SCHEMES = tuple(PACKAGES)
PART = 8 << 20
SLOWEST = 64 << 10
"""Bytes per second that are no stall; a call does not show how far it has got."""
LISTING = 10
"""How much longer than other calls a listing may take, which is many requests."""
TAGS = ("ETag", "etag", "blob_id", "md5Hash", "crc32c", "LastModified", "last_modified", "mtime")
"""Entries of fsspec's file information that differ between states of a file, the surest first."""

Result = TypeVar("Result")

_systems: dict[tuple[int, str], AbstractFileSystem] = {}


class StoredFile(Transport):
    """A file named by a URL of one of ``SCHEMES``; credentials are those of the environment."""

    connections = 4

    def __init__(self, url: str, timeout: float) -> None:
        self._url = url
        self._timeout = timeout

    def stamp(self, renewed: bool = False) -> Stamp:
        info = limited(lambda: self._info(renewed), self._timeout)
        tag = next((str(info[name]) for name in TAGS if info.get(name)), "")
        return Stamp(info["size"], tag, info["size"] is not None)

    def _info(self, renewed: bool) -> dict[str, Any]:
        system, path = _system(self._url)
        if renewed:
            system.invalidate_cache(path)
        found: dict[str, Any] = system.info(path)
        if found["type"] == "directory":
            raise FileNotFoundError
        return found

    def part(self, start: int, stop: int, stamp: Stamp) -> bytes:
        if start == stop:
            return b""
        wanted = stop - start
        found = limited(lambda: self._part(start, stop), self._timeout + wanted / SLOWEST)
        if len(found) != wanted:
            raise Broken(f"{len(found):,} bytes came instead of {wanted:,}")
        return found

    def _part(self, start: int, stop: int) -> bytes:
        system, path = _system(self._url)
        if system.async_impl:
            return bytes(system.cat_file(path, start=start, end=stop))
        with system.open(path, "rb", cache_type="none") as file:
            file.seek(start)
            return bytes(file.read(stop - start))

    def whole(self) -> Generator[bytes]:
        stamp = self.stamp()
        if stamp.size is None:
            raise Refused("the store does not say how large it is")
        for start in range(0, stamp.size, PART):
            yield self.part(start, min(start + PART, stamp.size), stamp)


def matches(url: str, timeout: float) -> list[str]:
    """The files that a URL with wildcards stands for, sorted; raises as a ``Transport`` does."""

    def find() -> list[str]:
        system, path = _system(url)
        return [str(system.unstrip_protocol(name)) for name in sorted(system.glob(path))]

    return limited(find, LISTING * timeout)


def members(url: str, timeout: float) -> list[str] | None:
    """The files in a folder, sorted; None: it is no folder. Raises as a ``Transport`` does."""

    def find() -> list[str] | None:
        system, path = _system(url)
        if not system.isdir(path):
            return None
        found = system.ls(path, detail=True)
        names = sorted(str(entry["name"]) for entry in found if entry["type"] == "file")
        return [str(system.unstrip_protocol(name)) for name in names]

    return limited(find, LISTING * timeout)


def missing_package(url: str) -> str:
    """What has to be installed for ``url``, in words; empty: nothing."""
    scheme = url.partition(":")[0].lower()
    try:
        fsspec.get_filesystem_class(scheme)
    except (ImportError, ValueError) as error:  # of abfss it has not even heard without adlfs
        cause = error.__cause__ or error  # fsspec hides what is wrong with one that is there
        package = PACKAGES[scheme]
        return f"the package {package}, which cannot be imported ({cause}); pip install {package}"
    return ""


def _system(url: str) -> tuple[AbstractFileSystem, str]:
    """One file system per process: their connections do not survive a fork."""
    scheme = url.partition(":")[0].lower()
    key = (os.getpid(), scheme)
    if key not in _systems:
        # fsspec's own memory of them counts threads apart
        made = fsspec.get_filesystem_class(scheme)(skip_instance_cache=True)
        _systems.setdefault(key, made)
    system = _systems[key]
    return system, str(system._strip_protocol(url))


def limited(function: Callable[[], Result], seconds: float) -> Result:
    """What ``function`` returns, unless it takes longer; then it is left to itself.

    Raises:
        Broken, Refused: it failed, or took too long.
    """
    future = in_background(function)
    if wait([future], seconds).not_done:
        raise Broken(f"no answer for {seconds:g} s")
    try:
        return future.result()
    except Exception as error:
        raise _reason(error) from error


def _reason(error: Exception) -> Exception:
    said = str(error) or type(error).__name__
    code = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, FileNotFoundError) or code == 404:
        return Refused("there is no such file; check the URL, and the credentials")
    if isinstance(error, PermissionError) or code in (401, 403):
        return Refused(f"the store does not allow it ({said}); check the credentials")
    if type(error).__name__ == "NoCredentialsError":
        return Refused(
            "there are no credentials for it; set them in the environment, or for public buckets "
            "anonymous access in fsspec's config (such as FSSPEC_S3_ANON=true)"
        )
    if isinstance(error, ImportError | ValueError | NotImplementedError):
        return Refused(f"it cannot be read ({said})")
    return Broken(f"{type(error).__name__}: {said}")
