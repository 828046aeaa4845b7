"""What goes to and from the Hub, seen by a small Hub of our own on the loopback interface."""

import base64
import io
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from selfdistill.cli import main

SHA = "0123456789" * 4
TOKEN = "hf_right"
FILES = {
    "config.json": b'{"model_type": "data2vec-audio"}',
    "preprocessor_config.json": b"{}",
    "model-00001-of-00002.safetensors": bytes(range(256)) * 99,
    "model-00002-of-00002.safetensors": b"the rest",
    "model.safetensors.index.json": b'{"weight_map": {}}',
    "README.md": b"# A model\n",
}
UNWANTED = {"pytorch_model.bin": b"pickled", "code.py": b"import os", "tf_model.h5": b"other"}
CLIENT = """
import sys
from pathlib import Path
from selfdistill.errors import SelfdistillError
from selfdistill.hub import remote
try:
    if sys.argv[1] == "push":
        print(remote.push(Path(sys.argv[2]), sys.argv[3]))
    else:
        print(remote.download(sys.argv[2], "MODEL"))
except SelfdistillError as error:
    print(error)
    sys.exit(error.exit_code)
"""
PARTS, SILENCE = 10, 2.0
IMPATIENT = f"""
from selfdistill.hub import remote
remote.SILENCE = {SILENCE}
{CLIENT}"""
THERE_AND_BACK = """
import sys
from selfdistill.cli import main
run, there, back = sys.argv[1:]
code = main(["export", run, "--out", there, "--push", "someone/encoder"])
sys.exit(code or main(["export", "someone/encoder", "--out", back]))
"""


class Hub(ThreadingHTTPServer):
    """The part of huggingface.co that keeps model repositories, those of the user ``someone``.

    Attributes:
        repositories: contents by repository and file.
        gated: repositories whose terms nobody has agreed to.
        broken: answers nothing but 500.
        silent: answers nothing at all.
        instead: status and content of all its answers, where it is no Hub.
        pause: seconds between the ``PARTS`` in which it takes what is large, and answers.
        requests: method, path and Authorization header of each.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Desk)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.gated: set[str] = set()
        self.broken = False
        self.silent = False
        self.instead: tuple[int, Any] | None = None
        self.pause = 0.0
        self.requests: list[tuple[str, str, str | None]] = []

    def fetched(self) -> set[str]:
        paths = [
            path for method, path, _ in self.requests if method == "GET" and "/resolve/" in path
        ]
        return {path.rsplit("/", 1)[1] for path in paths}


class Desk(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def serve(self) -> None:
        body = self.read(int(self.headers.get("Content-Length") or 0))
        path, token = self.path.partition("?")[0], self.headers.get("Authorization")
        self.server.requests.append((self.command, path, token))
        if self.server.silent:
            self.rfile.read(1)  # until the other side goes away
            self.close_connection = True
        elif self.server.instead:
            status, content = self.server.instead
            self.answer(content, status)
        elif self.server.broken:
            self.refuse(500, "out of order")
        elif token not in (None, f"Bearer {TOKEN}"):
            self.refuse(401, "Invalid credentials in Authorization header")
        elif path == "/api/repos/create":
            self.create(**json.loads(body))
        elif path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif path.startswith("/api/models/"):
            self.repository(path.split("/")[3:], body)
        elif "/resolve/" in path:
            repository, _, name = path[1:].partition(f"/resolve/{SHA}/")
            content = self.server.repositories[repository][name]
            self.answer(content, ETag=f'"{name}"', **{"X-Repo-Commit": SHA})
        else:
            self.refuse(404, "nothing here")

    do_GET = do_HEAD = do_POST = serve

    def read(self, length: int) -> bytes:
        if length < 1 << 20:  # has come whole, and to be slow would be to be silent
            return self.rfile.read(length)
        return b"".join(self.rfile.read(part) for part in self.parts(length))

    def parts(self, length: int) -> Iterator[int]:
        for part in range(PARTS):
            time.sleep(self.server.pause if part else 0)
            yield length * (part + 1) // PARTS - length * part // PARTS

    def create(self, name: str, organization: str, **_: object) -> None:
        if organization != "someone":
            self.refuse(403, "no rights in this namespace")
            return
        self.server.repositories.setdefault(f"{organization}/{name}", {})
        self.answer({"url": f"{self.server.url}/{organization}/{name}"})

    def repository(self, parts: list[str], body: bytes) -> None:
        name, action = "/".join(parts[:2]), parts[2] if len(parts) > 2 else ""
        files = self.server.repositories.get(name)
        if name in self.server.gated:
            self.refuse(403, "terms", "GatedRepo")
        elif files is None:
            self.refuse(404, "Repository not found", "RepoNotFound")
        elif action == "preupload":
            wanted = [file["path"] for file in json.loads(body)["files"]]
            modes = {"uploadMode": "regular", "shouldIgnore": False}
            self.answer({"files": [{"path": path, **modes} for path in wanted]})
        elif action == "commit":
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    assert line["value"]["encoding"] == "base64"
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            url = f"{self.server.url}/{name}/commit/{SHA}"
            self.answer({"success": True, "commitUrl": url, "commitOid": SHA})
        elif action == "tree":
            rows = [{"path": n, "size": len(c), "oid": "1" * 40} for n, c in files.items()]
            self.answer([{"type": "file", **row} for row in rows])
        else:
            self.answer({"id": name, "sha": SHA, "siblings": [{"rfilename": n} for n in files]})

    def answer(self, content: Any, status: int = 200, **headers: str) -> None:
        is_file = isinstance(content, bytes)
        body = content if is_file else json.dumps(content).encode()
        self.send_response(status)
        headers["Content-Type"] = "application/octet-stream" if is_file else "application/json"
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            rest = io.BytesIO(body)
            for part in self.parts(len(body)):
                self.wfile.write(rest.read(part))

    def refuse(self, status: int, message: str, code: str = "") -> None:
        self.answer({"error": message}, status, **({"X-Error-Code": code} if code else {}))

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        server.repositories["someone/encoder"] = dict(FILES)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


Client = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def client(hub: Hub, tmp_path: Path) -> Client:
    """(program, words, HF_...) to what became of it, with a cache and a home of its own.

    A process of its own, because huggingface_hub reads its settings when it is imported.
    """

    def run(program: str, *words: str, **settings: str) -> subprocess.CompletedProcess[str]:
        foreign = ("HF_", "HUGGING", "TRANSFORMERS_", "XDG_")
        kept = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(foreign) and not key.lower().endswith("_proxy")
        }
        own = {"HOME": str(tmp_path), "HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": hub.url}
        return subprocess.run(
            [sys.executable, "-c", program, *words],
            env={**kept, "OMP_NUM_THREADS": "1", **own, "HF_TOKEN": TOKEN, **settings},
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_download(hub: Hub, client: Client) -> None:
    hub.repositories["someone/encoder"] |= UNWANTED
    done = client(CLIENT, "download", "someone/encoder")
    assert done.returncode == 0, done.stderr
    assert contents(Path(done.stdout.strip())) == FILES
    assert hub.fetched() == FILES.keys()
    tokens = {token for _, path, token in hub.requests if "someone/encoder" in path}
    assert tokens == {f"Bearer {TOKEN}"}


def test_download_of_what_is_pickled_only(hub: Hub, client: Client) -> None:
    files = {"config.json": b"{}", **UNWANTED}
    hub.repositories["someone/encoder"] = files
    done = client(CLIENT, "download", "someone/encoder")
    found = contents(Path(done.stdout.strip()))
    assert found == {name: files[name] for name in ("config.json", "pytorch_model.bin")}


@pytest.mark.parametrize(
    "settings", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:1"}]
)
def test_what_was_downloaded_needs_no_hub(
    settings: dict[str, str], hub: Hub, client: Client
) -> None:
    first = client(CLIENT, "download", "someone/encoder")
    hub.requests.clear()
    second = client(CLIENT, "download", "someone/encoder", **settings)
    assert second.returncode == 0, second.stdout
    assert second.stdout == first.stdout
    assert hub.requests == []


def test_push(hub: Hub, client: Client, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    done = client(CLIENT, "push", str(folder), "someone/new")
    assert done.returncode == 0, done.stdout
    assert done.stdout.strip() == f"{hub.url}/someone/new/commit/{SHA}"
    assert hub.repositories["someone/new"] == FILES
    writing = {path: token for method, path, token in hub.requests if method == "POST"}
    assert {"/api/repos/create", "/api/models/someone/new/commit/main"} <= writing.keys()
    for path in ("/api/repos/create", "/api/models/someone/new/commit/main"):
        assert writing[path] == f"Bearer {TOKEN}"


def old_token(hub: Hub) -> dict[str, str]:
    return {"HF_TOKEN": "hf_old"}


def no_server(hub: Hub) -> dict[str, str]:
    return {"HF_ENDPOINT": "http://127.0.0.1:1"}


def offline(hub: Hub) -> dict[str, str]:
    return {"HF_HUB_OFFLINE": "1"}


def close_gate(hub: Hub) -> dict[str, str]:
    hub.gated.add("someone/encoder")
    return {}


def break_down(hub: Hub) -> dict[str, str]:
    hub.broken = True
    return {}


Trouble = Callable[[Hub], dict[str, str]]
BOTH: list[tuple[Trouble, str]] = [
    (old_token, "the Hub does not take the token; log in with `hf auth"),
    (close_gate, "one has to agree to its terms first"),
    (break_down, "the Hub answers 500 (out of order)"),
    (no_server, "[Errno 111] Connection refused"),
    (offline, "HF_HUB_OFFLINE is set"),
]


@pytest.mark.parametrize(("trouble", "words"), BOTH)
def test_what_keeps_from_downloading(
    trouble: Trouble, words: str, hub: Hub, client: Client
) -> None:
    done = client(CLIENT, "download", "someone/encoder", **trouble(hub))
    assert done.returncode == 2
    start = "MODEL: someone/encoder is not here, and cannot be downloaded: "
    assert done.stdout.startswith(start + words), done.stdout + done.stderr


@pytest.mark.parametrize(("trouble", "words"), BOTH)
def test_what_keeps_from_uploading(
    trouble: Trouble, words: str, hub: Hub, client: Client, tmp_path: Path
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "config.json").write_text("{}")
    settings = trouble(hub)
    done = client(CLIENT, "push", str(tmp_path / "folder"), "someone/encoder", **settings)
    assert done.returncode == 1
    start = "--push: cannot upload to someone/encoder: "
    assert done.stdout.startswith(start + words), done.stdout + done.stderr
    assert done.stdout.endswith(f"; {tmp_path / 'folder'} is complete\n")
    assert hub.repositories["someone/encoder"] == FILES


def upload(tmp_path: Path, content: bytes) -> list[str]:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "model.safetensors").write_bytes(content)
    return ["push", str(tmp_path / "folder"), "someone/encoder"]


@pytest.mark.skipif(
    not hasattr(huggingface_hub, "set_client_factory"), reason="it waits with requests"
)
def test_a_hub_that_never_answers_is_given_up(hub: Hub, client: Client, tmp_path: Path) -> None:
    """A connection that is accepted and no more, as by a proxy that has lost its way."""
    hub.silent = True
    there = client(IMPATIENT, *upload(tmp_path, b"tensors"))
    whole = f"{tmp_path / 'folder'} is complete"
    assert there.stdout == f"--push: cannot upload to someone/encoder: timed out; {whole}\n"
    assert there.returncode == 1
    back = client(IMPATIENT, "download", "someone/encoder")
    words = "MODEL: someone/encoder is not here, and cannot be downloaded: timed out\n"
    assert (back.stdout, back.returncode) == (words, 2)


def test_what_comes_slowly_is_waited_for(hub: Hub, client: Client) -> None:
    hub.pause = 0.15 * SILENCE
    hub.repositories["someone/encoder"] = {"model.safetensors": b"tensors"}
    done = client(IMPATIENT, "download", "someone/encoder")
    assert done.returncode == 0, done.stdout
    assert contents(Path(done.stdout.strip())) == hub.repositories["someone/encoder"]


def test_what_goes_slowly_is_waited_for(hub: Hub, client: Client, tmp_path: Path) -> None:
    """More than the system takes into its buffers."""
    hub.pause = 0.15 * SILENCE
    large = os.urandom(1 << 25)
    done = client(IMPATIENT, *upload(tmp_path, large))
    assert done.returncode == 0, done.stdout
    assert hub.repositories["someone/encoder"]["model.safetensors"] == large


def test_there_is_no_such_repository(client: Client) -> None:
    done = client(CLIENT, "download", "someone/else")
    assert done.returncode == 2
    assert "the Hub has no such repository, or does not show it to this token" in done.stdout


def test_another_users_repository(hub: Hub, client: Client, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    done = client(CLIENT, "push", str(tmp_path / "folder"), "other/encoder")
    assert done.returncode == 1
    assert "the Hub answers 403 (no rights in this namespace); /" in done.stdout
    assert hub.repositories.keys() == {"someone/encoder"}


PAGE = b"<!DOCTYPE html><title>Welcome to our network</title>"


@pytest.mark.parametrize(
    ("instead", "fault"),
    [
        ((200, PAGE), "is no JSON"),
        ((200, b"{\xff}"), "is no JSON"),
        ((200, {"welcome": "to our network"}), "lacks '{}'"),
        ((409, {"error": "conflict"}), "lacks '{}'"),
    ],
)
def test_what_answers_is_no_hub(
    instead: tuple[int, Any], fault: str, hub: Hub, client: Client, tmp_path: Path
) -> None:
    """Such as the page on which a network wants a login."""
    hub.instead = instead
    start = f"what answers at {hub.url} is no Hub, as its answer {fault}; check HF_ENDPOINT"
    there = client(CLIENT, *upload(tmp_path, b"tensors"))
    assert f"upload to someone/encoder: {start.format('url')}" in there.stdout
    if instead[0] == 200:
        back = client(CLIENT, "download", "someone/encoder")
        assert f"cannot be downloaded: {start.format('id')}" in back.stdout


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"error": "storage quota exceeded"}, "the Hub answers 403 (storage quota exceeded); /"),
        (b"", "the Hub answers 403 and does not say why; take a token that may do this; /"),
    ],
)
def test_another_token_is_asked_for_where_that_may_help(
    content: Any, words: str, hub: Hub, client: Client, tmp_path: Path
) -> None:
    hub.instead = 403, content
    done = client(CLIENT, *upload(tmp_path, b"tensors"))
    assert f"--push: cannot upload to someone/encoder: {words}" in done.stdout


def test_there_and_back(
    hub: Hub, client: Client, run: Callable[[str], Path], tmp_path: Path
) -> None:
    """A run is exported, uploaded, downloaded and exported again: the files are the same."""
    there, back = tmp_path / "there", tmp_path / "back"
    hub.repositories.clear()
    done = client(THERE_AND_BACK, str(run("image")), str(there), str(back))
    assert done.returncode == 0, done.stderr
    assert f"written to {there}, uploaded to {hub.url}/someone/encoder/commit/{SHA}" in done.stdout
    assert "model.safetensors" in contents(there)
    assert hub.repositories == {"someone/encoder": contents(there)}
    assert contents(back) == contents(there)


@pytest.fixture
def logged_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "token"))


@pytest.mark.usefixtures("logged_out")
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("someone/encoder", "--push: no token; log in with `hf auth login`, or set HF_TOKEN"),
        ("encoder", "--push: encoder is no name of a repository; expected USER/NAME"),
        ("some one/encoder", "--push: some one/encoder is no name of a repository"),
        ("../encoder", "--push: ../encoder is no name of a repository"),
    ],
)
def test_a_push_that_cannot_be_is_refused_before_the_export(
    name: str,
    words: str,
    run: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source, out = str(run("image")), tmp_path / "out"
    capsys.readouterr()
    assert main(["export", source, "--out", str(out), "--push", name]) == 2
    assert f"selfdistill: {words}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
