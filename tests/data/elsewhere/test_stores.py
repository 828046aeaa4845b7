"""Shards in object stores, from servers on the loopback interface."""

import hashlib
import json
import multiprocessing
import os
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import huggingface_hub.constants
import pytest
from rough_server import access, shards_on_disk

from selfdistill.data.elsewhere import remote as remote_module
from selfdistill.data.elsewhere import stores
from selfdistill.data.locations import resolve
from selfdistill.data.shards import ShardSet, open_shards
from selfdistill.errors import SelfdistillError, UserError

Sample = tuple[str, dict[str, bytes]]


def everything(shards: ShardSet) -> list[Sample]:
    return [shards.read(i) for i in range(len(shards))]


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("disk")
    shards_on_disk(folder)
    return folder


@pytest.fixture
def expected(disk: Path) -> list[Sample]:
    return everything(ShardSet(sorted(disk.glob("*.tar")), ["jpg"]))


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "_systems", {})
    monkeypatch.setattr(remote_module, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(remote_module, "PART", 20_000)


@pytest.fixture(scope="module")
def s3_url() -> Iterator[str]:
    moto = pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


class TestS3:
    @pytest.fixture
    def bucket(self, s3_url: str, disk: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
        boto3 = pytest.importorskip("boto3")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "me")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "sesame")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        monkeypatch.setenv("AWS_ENDPOINT_URL", s3_url)
        self.client = boto3.client("s3")
        self.client.create_bucket(Bucket="bucket")
        for path in disk.iterdir():
            self.client.put_object(Bucket="bucket", Key=f"d/{path.name}", Body=path.read_bytes())
        yield "s3://bucket"
        for entry in self.client.list_objects(Bucket="bucket")["Contents"]:
            self.client.delete_object(Bucket="bucket", Key=entry["Key"])
        self.client.delete_bucket(Bucket="bucket")

    @pytest.mark.parametrize("names", ["d/s-{0..2}.tar", "d/s-*.tar", "d", "d/"])
    def test_as_from_disk(
        self, bucket: str, expected: list[Sample], tmp_path: Path, names: str
    ) -> None:
        shards = open_shards([f"{bucket}/{names}"], ["jpg"], access(tmp_path))
        assert shards.names == ["s-0.tar", "s-1.tar", "s-2.tar"]
        assert everything(shards) == expected

    @pytest.mark.parametrize("bound", [10**9, 60_000, 0])
    def test_as_from_disk_without_indexes_and_room(
        self, bucket: str, expected: list[Sample], tmp_path: Path, bound: int
    ) -> None:
        for number in range(3):
            self.client.delete_object(Bucket="bucket", Key=f"d/s-{number}.tar.index")
        limits = access(tmp_path, cache_bytes=bound)
        assert everything(open_shards([f"{bucket}/d"], ["jpg"], limits)) == expected

    def test_forked_workers(self, bucket: str, expected: list[Sample], tmp_path: Path) -> None:
        shards = open_shards([f"{bucket}/d/*.tar"], ["jpg"], access(tmp_path))
        assert shards.read(0) == expected[0]
        shards.prefetch(12)

        def read() -> None:
            shards.prefetch(24)
            os._exit(0 if everything(shards) == expected else 1)

        fork = multiprocessing.get_context("fork")
        processes = [fork.Process(target=read) for _ in range(2)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(30)
        assert [process.exitcode for process in processes] == [0, 0]

    @pytest.mark.parametrize("bound", [10**9, 0])
    def test_a_changed_shard(self, bucket: str, tmp_path: Path, bound: int) -> None:
        limits = access(tmp_path, cache_bytes=bound)
        shards = open_shards([f"{bucket}/d/*.tar"], ["jpg"], limits)
        old = self.client.get_object(Bucket="bucket", Key="d/s-1.tar")["Body"].read()
        self.client.put_object(Bucket="bucket", Key="d/s-1.tar", Body=old[::-1])
        words = "shard 's3://bucket/d/s-1.tar' is not what it was when the run started"
        with pytest.raises(SelfdistillError, match=words):
            shards.read(12)

    def test_what_is_not_there(self, bucket: str, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"data.train: 's3://bucket/\*.tar' has no .tar, "):
            resolve([f"{bucket}/*.tar"], access=access(tmp_path))
        for url in (f"{bucket}/d/t.tar", "s3://pail/t.tar"):
            with pytest.raises(UserError, match=f"cannot read '{url}': there is no such file"):
                open_shards([url], ["jpg"], access(tmp_path))

    def test_no_credentials(
        self, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setenv("HOME", str(tmp_path))
        with pytest.raises(UserError, match=r"there are no credentials for it; set them in the"):
            open_shards([f"{bucket}/d/s-0.tar"], ["jpg"], access(tmp_path))


class Hub(ThreadingHTTPServer):
    """The part of huggingface.co that data sets are read from.

    Attributes:
        files: contents by path in the one data set there is, someone/things at ``main`` or v1.
        tokens: the Authorization headers that came.
    """

    daemon_threads = True

    def __init__(self, disk: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Desk)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.files = {f"data/{path.name}": path.read_bytes() for path in disk.iterdir()}
        self.tokens: set[str | None] = set()


class _Desk(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Hub

    def serve(self) -> None:
        path = unquote(self.path.partition("?")[0])
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        data_set = re.match(r"/(api/)?datasets/someone/things(.*)", path)
        rest = data_set[2] if data_set else ""
        if data_set:
            self.server.tokens.add(self.headers.get("Authorization"))
        if not data_set:
            self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif found := re.fullmatch(r"/resolve/(?:main|v1)/(.*)", rest):
            self.content(self.server.files.get(found[1]))
        elif found := re.fullmatch(r"/tree/(?:main|v1)(/data)?", rest):
            self.answer(200, json.dumps(self.entries(bool(found[1]))).encode())
        elif rest in ("", "/revision/v1", "/revision/main"):
            about = {"id": "someone/things", "sha": "0" * 40, "siblings": []}
            self.answer(200, json.dumps(about).encode())
        else:
            self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})

    do_GET = do_HEAD = do_POST = serve

    def entries(self, inside: bool) -> list[dict[str, object]]:
        folder = {"type": "directory", "path": "data", "oid": _sum(b""), "size": 0}
        files = sorted(self.server.files.items())
        entries = [
            {"type": "file", "path": name, "size": len(data), "oid": _sum(data)}
            for name, data in files
        ]
        return entries if inside else [folder]

    def content(self, data: bytes | None) -> None:
        if data is None:
            self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        span = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        headers = {"ETag": f'"{_sum(data)}"', "X-Repo-Commit": "0" * 40}
        if span:
            first, last = int(span[1]), min(int(span[2]), len(data) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            data = data[first : last + 1]
        self.answer(206 if span else 200, data, headers)

    def answer(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def _sum(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


class TestHub:
    @pytest.fixture
    def hub(self, disk: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
        server = Hub(disk)
        constants = huggingface_hub.constants
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, server.url)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setenv("HF_TOKEN", "hf_sesame")
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()
        server.server_close()

    @pytest.mark.parametrize(
        "names", ["/data/s-{0..2}.tar", "/data/*.tar", "/data", "@v1/data/s-[0-2].tar"]
    )
    def test_as_from_disk(
        self, hub: Hub, expected: list[Sample], tmp_path: Path, names: str
    ) -> None:
        url = f"hf://datasets/someone/things{names}"
        shards = open_shards([url], ["jpg"], access(tmp_path))
        assert shards.names == ["s-0.tar", "s-1.tar", "s-2.tar"]
        assert everything(shards) == expected
        assert everything(open_shards([url], ["jpg"], access(tmp_path, cache_bytes=0))) == expected
        assert hub.tokens == {"Bearer hf_sesame"}

    @pytest.mark.parametrize("bound", [10**9, 0])
    def test_a_changed_shard(self, hub: Hub, tmp_path: Path, bound: int) -> None:
        limits = access(tmp_path, cache_bytes=bound)
        shards = open_shards(["hf://datasets/someone/things/data"], ["jpg"], limits)
        hub.files["data/s-1.tar"] = hub.files["data/s-1.tar"][::-1]
        shards.read(0)
        with pytest.raises(SelfdistillError, match="is not what it was when the run started"):
            shards.read(12)

    def test_what_is_not_there(self, hub: Hub, tmp_path: Path) -> None:
        for name in ("things/data/t.tar", "other/t.tar"):
            with pytest.raises(UserError, match=f"'hf://datasets/someone/{name}': there is no s"):
                open_shards([f"hf://datasets/someone/{name}"], ["jpg"], access(tmp_path))
