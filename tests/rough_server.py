"""A web server on the loopback interface that can misbehave, and shards to serve."""

import functools
import hashlib
import io
import itertools
import re
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np

from selfdistill.data.elsewhere.address import Access
from selfdistill.data.sidecar import SUFFIX, write_sidecar

MEMBERS = [(f"{i:03d}.{e}", f"{e}{i}".encode() * 300) for i in range(12) for e in ("jpg", "cls")]


def tar_bytes(members: Sequence[tuple[str, bytes]] = MEMBERS, mode: str = "w") -> bytes:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode=mode) as archive:  # type: ignore[call-overload]
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return written.getvalue()


def shards_on_disk(folder: Path, count: int = 3, sidecars: bool = True) -> list[Path]:
    """Shards of different samples, ``s-0.tar`` and so on."""
    folder.mkdir(exist_ok=True)
    paths = []
    for number in range(count):
        path = folder / f"s-{number}.tar"
        path.write_bytes(tar_bytes([(f"{number}-{name}", data) for name, data in MEMBERS]))
        if sidecars:
            lengths = np.arange(12, dtype=np.float32) + 100 * number
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            write_sidecar(path, lengths=lengths, digest=digest)
        paths.append(path)
    return paths


def access(folder: Path, **changes: object) -> Access:
    """To a cache in ``folder``, with little patience."""
    given = {"cache_folder": folder, "cache_bytes": 10**9, "timeout": 5.0, "allow_pipe": False}
    return Access(**{**given, **changes})  # type: ignore[arg-type]


@functools.cache
def tag(content: bytes) -> str:
    """What tells a state of a file from others."""
    return f'"{hashlib.md5(content).hexdigest()}"'


@dataclass
class Fault:
    """What goes wrong with one answer.

    Attributes:
        status: answer this, with nothing to read.
        headers: further ones.
        drop_at: share of the body after which the connection is closed.
        stall_at: share of the body after which nothing more comes.
        chunked: the body's length is not announced; it is sent in chunks.
        unannounced: neither is its length announced nor its end; the connection is closed there.
        early: bytes by which a part begins before the one that was asked for.
    """

    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    drop_at: float | None = None
    stall_at: float | None = None
    chunked: bool = False
    unannounced: bool = False
    early: int = 0


class RoughServer(ThreadingHTTPServer):
    """Serves ``files`` by path.

    Attributes:
        files: contents; they may be changed at any time.
        ranges: whether parts are given.
        tags: whether states of a file are told apart.
        fault: number of the request (from 0) and path to what goes wrong; by default nothing.
        requests: path, range and Authorization header of each.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Desk)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.files: dict[str, bytes] = {}
        self.ranges = self.tags = True
        self.fault: Callable[[int, str], Fault | None] = lambda number, path: None
        self.requests: list[tuple[str, str, str]] = []
        self.count = itertools.count()
        self.closing = threading.Event()

    def serve_folder(self, folder: Path) -> None:
        self.files = {f"/{path.name}": path.read_bytes() for path in sorted(folder.iterdir())}

    def asked(self, suffix: str) -> list[str]:
        """The ranges that were asked for of paths with this end."""
        return [part for path, part, _ in self.requests if path.endswith(suffix)]

    def bodies(self) -> int:
        """How often the start of a shard was asked for, other than to look at its state."""
        shards = [part for path, part, _ in self.requests if not path.endswith(SUFFIX)]
        return sum(not part or re.match("bytes=0-[1-9]", part) is not None for part in shards)


class _Desk(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: RoughServer

    def do_GET(self) -> None:
        server, path = self.server, self.path.partition("?")[0]
        wanted = self.headers.get("Range", "")
        server.requests.append((self.path, wanted, self.headers.get("Authorization", "")))
        fault = server.fault(next(server.count), path) or Fault()
        content = server.files.get(path)
        if fault.status or content is None:
            self._head(fault.status or 404, {"Content-Length": "0", **fault.headers})
            return
        headers, status = dict(fault.headers), 200
        if server.tags:
            headers.setdefault("ETag", tag(content))
        span = re.fullmatch(r"bytes=(\d+)-(\d+)", wanted) if server.ranges else None
        if span:
            first, last = int(span[1]), min(int(span[2]), len(content) - 1)
            first -= fault.early
            if first > last:
                self._head(416, {"Content-Length": "0"})
                return
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            content, status = content[first : last + 1], 206
        self._send(status, headers, content, fault)

    def do_HEAD(self) -> None:
        self._head(405, {"Content-Length": "0"})

    def _send(self, status: int, headers: dict[str, str], content: bytes, fault: Fault) -> None:
        if fault.chunked:
            headers["Transfer-Encoding"] = "chunked"
        elif not fault.unannounced:
            headers["Content-Length"] = str(len(content))
        self._head(status, headers)
        share = next((at for at in (fault.drop_at, fault.stall_at) if at is not None), None)
        sent = content if share is None else content[: int(len(content) * share)]
        self.wfile.write(b"%x\r\n%s\r\n" % (len(sent), sent) if fault.chunked and sent else sent)
        self.wfile.flush()
        if fault.chunked and share is None:
            self.wfile.write(b"0\r\n\r\n")
        if fault.stall_at is not None:
            self.server.closing.wait(30)
        if share is not None or fault.unannounced:
            self.close_connection = True

    def _head(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def running() -> Iterator[RoughServer]:
    server = RoughServer()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        thread.join()
        server.server_close()


def eventually(happened: Callable[[], bool], seconds: float = 10) -> bool:
    """Whether something happens in good time."""
    end = time.monotonic() + seconds
    while not happened() and time.monotonic() < end:
        time.sleep(0.01)
    return happened()
