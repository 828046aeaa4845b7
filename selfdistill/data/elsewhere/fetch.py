"""Shards elsewhere, read through the cache, or part by part where that has no room."""

import logging
import os
import queue
import re
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from selfdistill.data.elsewhere.address import Access, Remote
from selfdistill.data.elsewhere.cache import Cache, NoRoom
from selfdistill.data.elsewhere.ranges import Ahead, open_ranges
from selfdistill.data.elsewhere.remote import RemoteFile, TooLarge
from selfdistill.data.elsewhere.transport import Stamp
from selfdistill.data.headers import cut_off, list_tar
from selfdistill.data.shard import Shard, check_size
from selfdistill.data.sidecar import (
    SIDECAR_BYTES,
    SUFFIX,
    BadSidecar,
    Sidecar,
    encode_sidecar,
    read_sidecar,
)
from selfdistill.data.sources import FileSource, TarSource, changed
from selfdistill.data.tarindex import Contents
from selfdistill.errors import SelfdistillError

log = logging.getLogger(__name__)


class Fetcher:
    """What the shards elsewhere of one list share.

    Args:
        key: the config's name of them, for the error messages.
        access: how they are reached and kept.

    Raises:
        UserError: the cache folder cannot be used.
    """

    def __init__(self, key: str, access: Access) -> None:
        self.key = key
        self.access = access
        self.cache = Cache(access.cache_folder, access.cache_bytes)
        self._said: dict[str, object] = {}
        self._helper: _Helper | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_helper": None}

    def say_once(self, what: str, message: str, *values: object) -> None:
        mine = object()
        if self._said.setdefault(what, mine) is mine:  # whatever other threads do
            log.warning(message, *values)

    def helper(self) -> "_Helper":
        """The thread of this process that fetches ahead; threads do not survive a fork."""
        if self._helper is None or self._helper.process != os.getpid():
            self._helper = _Helper()
        return self._helper


class RemoteShard(Shard):
    """A file elsewhere; see ``Shard``."""

    is_here = False

    def __init__(self, remote: Remote, fetcher: Fetcher) -> None:
        self.remote = remote
        self.name, self.shown = remote.name, str(remote)
        self._fetcher = fetcher
        self._stamp = Stamp(None, "", False)
        self._digest = ""
        self._published = ""

    def learn(self, extensions: Sequence[str]) -> Sidecar | None:
        self._stamp = self._file().stamp()
        if self._stamp.parts and (self._stamp.size or 0) > self._fetcher.access.cache_bytes:
            self._say_in_parts()  # before workers are forked, who would all say it
        note = self._fetcher.cache.note(self._name_in_cache())
        try:
            if (found := self._beside(extensions)) is not None:
                self._digest = self._published = found.sha256
                return found
        except BadSidecar:
            if note is None:
                raise
        if note is not None:
            with suppress(BadSidecar):
                found = read_sidecar(note, extensions)
                self._digest = found.sha256
                return found
        self._fetcher.say_once(
            "index",
            "%s: shard '%s' has no index beside it, so all of it is downloaded to see what it "
            "holds, as with others like it; shards that `selfdistill pack` makes have one",
            self._fetcher.key,
            self.shown,
        )
        return None

    def _beside(self, extensions: Sequence[str]) -> Sidecar | None:
        if self.remote.is_command:
            return None
        beside = RemoteFile(self.remote.beside(SUFFIX), self._fetcher.key, self._fetcher.access)
        try:
            content = beside.content(SIDECAR_BYTES)
        except TooLarge:
            raise BadSidecar("it is too large") from None
        if content is None:
            return None
        sidecar = read_sidecar(content, extensions)
        check_size(sidecar, self._stamp.size)
        return sidecar

    def open(self) -> TarSource:
        try:
            descriptor = self._in_cache()
        except (NoRoom, TooLarge):
            return self._in_parts()
        try:
            return FileSource(descriptor, self.shown, borrowed=True)
        except OSError as error:
            raise SelfdistillError(
                f"{self._fetcher.key}: cannot read the copy of shard '{self.shown}' in "
                f"'{self._fetcher.access.cache_folder}': {error.strerror}"
            ) from error

    def is_good(self, source: TarSource) -> bool:
        if isinstance(source, FileSource):
            source.touch()
        return True

    def walk(self, source: TarSource) -> Contents:
        contents = list_tar(Ahead(source))
        size = source.size if self._stamp.size is None else self._stamp.size
        note = encode_sidecar(contents, size=size, tar_size=source.size, digest=self._digest)
        self._fetcher.cache.keep_note(self._name_in_cache(), note)
        return contents

    def state(self) -> str:
        known = self._stamp.tag or self._published or self._stamp.size is not None
        return self._name_in_cache() if known else ""

    def fetch_ahead(self) -> bool:
        # the one that is being read has to stay
        if 2 * (self._stamp.size or 0) > self._fetcher.access.cache_bytes:
            return True
        try:
            if self._fetcher.cache.has(self._name_in_cache()):
                return True
            return self._fetcher.helper().offer(self)
        except (OSError, RuntimeError):  # no thread can be started: it is fetched when it is read
            return True

    def bring(self) -> None:
        """Have it in the cache."""
        os.close(self._in_cache(patient=True))

    def _in_cache(self, patient: bool = False) -> int:
        name, size = self._name_in_cache(), self._stamp.size
        return self._fetcher.cache.open(name, size, self._download, patient)

    def _download(self, descriptor: int) -> None:
        file = self._file()
        file.check(self._stamp)
        bound = self._fetcher.access.cache_bytes

        def missing(digest: str) -> str:
            if digest == self._digest:
                return ""
            return cut_off(FileSource(os.dup(descriptor), self.shown))

        _, digest = file.download(descriptor, self._stamp, bound, missing)
        if self._digest and digest != self._digest:
            raise changed(self._fetcher.key, self.shown)
        if not self._digest:
            file.check(self._stamp)
        self._digest = digest

    def _in_parts(self) -> TarSource:
        access = self._fetcher.access
        if not self._stamp.parts:
            raise SelfdistillError(
                f"{self._fetcher.key}: shard '{self.shown}' has no room in '{access.cache_folder}' "
                "and cannot be read in parts; raise data.cache_gb, or free space on that disk"
            )
        self._say_in_parts()
        return open_ranges(self._file(), self._stamp)

    def _say_in_parts(self) -> None:
        access = self._fetcher.access
        self._fetcher.say_once(
            "parts",
            "%s: shard '%s' has no room in '%s' (data.cache_gb is %g); such shards are read sample "
            "by sample over the network, which is slower",
            self._fetcher.key,
            self.shown,
            access.cache_folder,
            access.cache_bytes / 1e9,
        )

    def _file(self) -> RemoteFile:
        return RemoteFile(self.remote, self._fetcher.key, self._fetcher.access)

    def _name_in_cache(self) -> str:
        """Stands for one state of the file; the tail is for people."""
        state = (str(self._stamp.size), self._stamp.tag, self._published)
        tail = re.sub(r"[^A-Za-z0-9._-]", "_", self.name)[-80:]
        return f"{self.remote.fingerprint(*state)[:32]}-{tail}"


class _Helper:
    """A thread that brings one shard after another."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self._next: queue.Queue[RemoteShard] = queue.Queue(1)
        threading.Thread(target=self._run, daemon=True).start()

    def offer(self, shard: RemoteShard) -> bool:
        """False: there is enough to do already."""
        try:
            self._next.put_nowait(shard)
        except queue.Full:
            return False
        return True

    def _run(self) -> None:
        while True:
            shard = self._next.get()
            try:
                shard.bring()
            except Exception as error:  # whoever reads it will meet the same
                log.debug("cannot fetch %s ahead: %s", shard.remote, error)
