import hashlib
import logging
import os
import ssl
import time
import traceback
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path

import pytest
from rough_server import Fault, RoughServer, access, running, tag

from selfdistill.data.elsewhere import remote as remote_module
from selfdistill.data.elsewhere import web
from selfdistill.data.elsewhere.address import Access, Remote
from selfdistill.data.elsewhere.remote import RemoteFile, TooLarge, persistently
from selfdistill.data.elsewhere.stores import limited
from selfdistill.data.elsewhere.transport import Broken, Refused, Stamp
from selfdistill.data.elsewhere.web import _wait
from selfdistill.errors import SelfdistillError, UserError
from selfdistill.redaction import without_secrets

CONTENT = os.urandom(10_000)
PAUSES = [0.01, 0.02, 0.04, 0.08]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[RoughServer]:
    monkeypatch.setattr(remote_module, "FIRST_PAUSE", PAUSES[0])
    monkeypatch.setattr(remote_module, "PART", 1000)
    with running() as server:
        server.files["/a.tar"] = CONTENT
        yield server


@pytest.fixture
def target(tmp_path: Path) -> Iterator[int]:
    """A descriptor to download into."""
    descriptor = os.open(tmp_path / "target", os.O_RDWR | os.O_CREAT)
    yield descriptor
    os.close(descriptor)


def of(server: RoughServer, path: str = "/a.tar", timeout: float = 5) -> RemoteFile:
    return RemoteFile(Remote(server.url + path), "data.train", access(Path("x"), timeout=timeout))


def fetched(file: RemoteFile, target: int) -> bytes:
    size, digest = file.download(target, file.stamp(), 10**6)
    found = os.pread(target, 10**6, 0)
    assert (size, digest) == (len(found), hashlib.sha256(found).hexdigest())
    return found


def test_the_certificates_that_are_trusted_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes ten times as long as a request."""
    made = [ssl.create_default_context()]
    monkeypatch.setattr(ssl, "create_default_context", made.pop)
    web._context.cache_clear()
    for _ in range(3):
        web._opener()
    assert not made


class TestReading:
    def test_stamp_part_and_whole(self, server: RoughServer, target: int) -> None:
        file = of(server)
        stamp = file.stamp()
        assert stamp == Stamp(len(CONTENT), tag(CONTENT), True)
        assert file.part(5, 99, stamp) == CONTENT[5:99]
        assert file.part(7, 7, stamp) == b""
        assert fetched(file, target) == CONTENT
        starts = [int(part[6:].split("-")[0]) for part in server.asked("a.tar")[3:]]
        assert sorted(starts) == list(range(0, 10_000, 1000))
        assert file.content(10_000) == CONTENT
        with pytest.raises(TooLarge):
            file.content(9_999)

    def test_another_part_is_not_taken_for_the_one_that_was_asked_for(
        self, server: RoughServer
    ) -> None:
        """Some proxies begin parts where their own pages begin."""
        file = of(server)
        stamp = file.stamp()
        server.fault = lambda number, path: Fault(early=4 * (number < 3))
        assert file.part(50, 99, stamp) == CONTENT[50:99]
        server.fault = lambda number, path: Fault(early=4)
        with pytest.raises(SelfdistillError, match="another part than"):
            file.part(50, 99, stamp)

    @pytest.mark.parametrize("chunked", [False, True])
    def test_servers_without_ranges(self, server: RoughServer, target: int, chunked: bool) -> None:
        server.ranges = server.tags = False
        server.fault = lambda number, path: Fault(chunked=chunked)
        file = of(server)
        assert file.stamp() == Stamp(None if chunked else len(CONTENT), "", False)
        os.pwrite(target, b"x" * 20_000, 0)
        assert fetched(file, target) == CONTENT
        with pytest.raises(TooLarge):
            file.download(target, file.stamp(), 9_999)

    def test_empty_file(self, server: RoughServer, target: int) -> None:
        server.files["/empty"] = b""
        file = of(server, "/empty")
        assert file.stamp().size == 0
        assert fetched(file, target) == b""

    def test_absent_small_file(self, server: RoughServer) -> None:
        assert of(server, "/gone").content(10) is None
        server.fault = lambda number, path: Fault(status=403)
        assert of(server).content(10) is None

    def test_redirects_do_not_take_the_password_along(self, server: RoughServer) -> None:
        with running() as other:
            other.files["/b.tar"] = CONTENT
            moved = Fault(status=302, headers={"Location": f"{other.url}/b.tar"})
            server.fault = lambda number, path: moved
            url = server.url.replace("//", "//me:se%40cret@") + "/a.tar"
            file = RemoteFile(Remote(url), "data.train", access(Path("x")))
            assert file.part(1, 3, file.stamp()) == CONTENT[1:3]
            assert server.requests[0][2] == "Basic bWU6c2VAY3JldA=="
            assert [request[1:] for request in other.requests] == [
                ("bytes=0-0", ""),
                ("bytes=1-2", ""),
            ]

    def test_redirects_lead_to_no_file(self, server: RoughServer, tmp_path: Path) -> None:
        (tmp_path / "secret").write_bytes(CONTENT)
        for target in (f"file://{tmp_path}/secret", "ftp://127.0.0.1/x", "data:,x"):
            moved = Fault(status=302, headers={"Location": target})
            server.fault = lambda number, path, moved=moved: moved
            with pytest.raises(SelfdistillError, match="cannot read"):
                of(server).stamp()

    def test_names_that_are_no_urls_yet(self, server: RoughServer) -> None:
        server.files["/a%20%C3%A4%25.tar"] = CONTENT
        assert of(server, "/a \u00e4%25.tar").part(0, 9, of(server).stamp()) == CONTENT[:9]


class TestFaults:
    def test_every_fifth_connection_drops(
        self, server: RoughServer, target: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        server.fault = lambda number, path: Fault(drop_at=0.5) if number % 5 == 4 else None
        with caplog.at_level(logging.WARNING):
            assert fetched(of(server), target) == CONTENT
        asked = server.asked("a.tar")
        assert len(asked) == 11 + len(asked) // 5
        assert len(caplog.records) == len(asked) // 5 >= 2
        assert "500 bytes came, 1,000 were announced; attempt 2 of 5 in 0.0 s" in caplog.text

    @pytest.mark.parametrize("fault", [Fault(drop_at=0.7), Fault(drop_at=0.7, chunked=True)])
    def test_short_bodies_are_not_used(
        self, server: RoughServer, target: int, fault: Fault
    ) -> None:
        server.ranges = False
        file = of(server)
        stamp = file.stamp()
        server.fault = lambda number, path: fault if number < 3 else Fault(chunked=fault.chunked)
        size, digest = file.download(target, stamp, 10**6)
        assert (size, digest) == (10_000, hashlib.sha256(CONTENT).hexdigest())
        assert os.pread(target, 10**6, 0) == CONTENT
        assert len(server.requests) == 4

    @pytest.mark.parametrize("share", [0.0, 0.5])
    def test_a_stall_is_reported_and_tried_again(
        self, server: RoughServer, target: int, share: float, caplog: pytest.LogCaptureFixture
    ) -> None:
        server.fault = lambda number, path: Fault(stall_at=share) if number == 3 else None
        start = time.monotonic()
        with caplog.at_level(logging.WARNING):
            assert fetched(of(server, timeout=0.3), target) == CONTENT
        assert time.monotonic() - start < 5
        (record,) = caplog.records
        assert record.getMessage().startswith(f"{server.url}/a.tar: no byte for 0.3 s; attempt 2")

    def test_it_ends_after_five_attempts(
        self, server: RoughServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        server.fault = lambda number, path: Fault(status=500)
        start = time.monotonic()
        expected = (
            f"^data.train: cannot read '{server.url}/a.tar': 5 attempts failed, the last one "
            "because: the server answers 500 Internal Server Error$"
        )
        with caplog.at_level(logging.WARNING), pytest.raises(SelfdistillError, match=expected):
            of(server).stamp()
        assert 0.7 * sum(PAUSES) < time.monotonic() - start < 2
        assert len(server.requests) == 5
        assert len(caplog.records) == 4

    def test_500_then_ok(self, server: RoughServer) -> None:
        server.fault = lambda number, path: Fault(status=503) if number < 4 else None
        assert of(server).stamp().size == 10_000

    def test_it_waits_as_long_as_the_server_asks(self, server: RoughServer) -> None:
        asked = Fault(status=429, headers={"Retry-After": "1"})
        server.fault = lambda number, path: asked if number == 0 else None
        start = time.monotonic()
        assert of(server).stamp().size == 10_000
        assert time.monotonic() - start > 0.9

    def test_what_servers_ask_for(self) -> None:
        assert _wait("7") == 7
        assert _wait("9999999") == 120
        assert 50 < _wait(formatdate(time.time() + 60, usegmt=True)) <= 60
        assert [_wait(text) for text in ("", "soon", "-5", formatdate(0))] == [0, 0, 0, 0]

    @pytest.mark.parametrize(
        ("status", "words"),
        [
            (404, r"the server has no such file \(404\); check the URL"),
            (403, r"the server does not allow it \(403\); check the URL, the credentials, and"),
            (401, r"does not allow it \(401\)"),
            (400, "the server answers 400 Bad Request; check the URL"),
        ],
    )
    def test_some_answers_are_final(self, server: RoughServer, status: int, words: str) -> None:
        server.fault = lambda number, path: Fault(status=status)
        with pytest.raises(UserError, match=f"^data.train: cannot read '{server.url}/.*{words}"):
            of(server).stamp()
        assert len(server.requests) == 1

    def test_nobody_listens(self, server: RoughServer) -> None:
        file = RemoteFile(Remote("http://127.0.0.1:9/a.tar"), "data.train", access(Path("x")))
        with pytest.raises(SelfdistillError, match=r"5 attempts .* connection failed .*refused"):
            file.stamp()

    @pytest.mark.parametrize(
        ("tags", "content", "ranges"),
        [
            (True, CONTENT[::-1], True),
            (False, CONTENT[:-1], True),
            (False, CONTENT[:-1], False),
            (True, b"", True),
        ],
    )
    def test_a_changed_file_is_told(
        self, server: RoughServer, target: int, tags: bool, content: bytes, ranges: bool
    ) -> None:
        server.tags, server.ranges = tags, ranges
        file = of(server)
        stamp = file.stamp()
        file.check(stamp)
        server.files["/a.tar"] = content
        words = f"data.train: shard '{server.url}/a.tar' is not what it was when the run started"
        actions: list[Callable[[], object]] = [
            lambda: file.check(stamp),
            lambda: file.download(target, stamp, 10**6),
        ]
        for action in actions:
            with pytest.raises(SelfdistillError, match=words):
                action()

    def test_calls_of_stores_are_limited(self) -> None:
        start = time.monotonic()
        with pytest.raises(Broken, match=r"no answer for 0.1 s"):
            limited(lambda: time.sleep(3), 0.1)
        assert time.monotonic() - start < 2

        def absent() -> None:
            raise FileNotFoundError("s3://x")

        with pytest.raises(Refused, match="no such file"):
            limited(absent, 5)


class TestPipes:
    def run(self, command: str, target: int, timeout: float = 5) -> bytes:
        limits = Access(Path("x"), 10**6, timeout, True)
        return fetched(RemoteFile(Remote(f"pipe:{command}"), "data.train", limits), target)

    def test_output(self, server: RoughServer, target: int, tmp_path: Path) -> None:
        (tmp_path / "f").write_bytes(CONTENT)
        assert self.run(f"cat {tmp_path}/f | cat", target) == CONTENT

    def test_failure_is_never_taken_for_the_end(self, server: RoughServer, target: int) -> None:
        words = "5 attempts failed, the last one because: the command ended with exit code 3"
        with pytest.raises(SelfdistillError, match=words) as raised:
            self.run("printf hello; exit 3 # --password secret", target)
        assert "'pipe:printf ... (pipe-" in str(raised.value)
        assert "secret" not in str(raised.value)

    def test_no_such_command(self, server: RoughServer, target: int) -> None:
        with pytest.raises(UserError, match="the shell cannot run it; check the command"):
            self.run("no-such-command 2>/dev/null", target)

    def test_stalled_commands_are_ended(
        self, server: RoughServer, target: int, tmp_path: Path
    ) -> None:
        command = f"if test -e {tmp_path}/again; then printf done; else touch {tmp_path}/again; "
        command += f"sleep 60 & echo $! > {tmp_path}/sleeper; wait; fi"
        start = time.monotonic()
        assert self.run(command, target, timeout=0.5) == b"done"
        assert time.monotonic() - start < 10
        sleeper = Path("/proc", (tmp_path / "sleeper").read_text().strip(), "stat")
        assert not sleeper.exists() or ") Z " in sleeper.read_text()


SECRETS = [
    "https://me:pass@host/a.tar",
    "https://token@host/a.tar",
    "s3://me:pass@host/a.tar",
    "https://host/a.tar?X-Amz-Signature=pass&token=token",
    "error at 'https://host/a.tar?sig=pass'\nand https://me:pass@host/b",
    "pipe:curl -H 'Authorization: pass' https://token@host",
]


@pytest.mark.parametrize("text", SECRETS)
def test_secrets_are_not_shown(text: str) -> None:
    remote = Remote(text)
    for shown in (str(remote), repr(remote), f"{remote}", remote.name):
        assert "pass" not in shown
        assert "token" not in shown
    if not text.startswith("pipe:"):
        assert "host" in without_secrets(text)
        assert "pass" not in without_secrets(text)


def test_errors_and_warnings_hold_no_secrets(
    server: RoughServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.tags = False
    url = server.url.replace("//", "//me:sesame@") + "/a.tar?signature=opensesame"
    for fault in (Fault(status=500), Fault(status=403), Fault(drop_at=0.1)):
        server.fault = lambda number, path, fault=fault: fault
        file = RemoteFile(Remote(url), "data.train", access(Path("x")))
        with caplog.at_level(logging.DEBUG), pytest.raises(SelfdistillError) as raised:
            file.part(0, 50, Stamp(10_000, "", True))
        assert "127.0.0.1" in str(raised.value)
        assert "sesame" not in "".join(traceback.format_exception(raised.value))
    assert len(caplog.records) == 8
    assert "sesame" not in caplog.text


@pytest.mark.parametrize("kind", [Broken, Refused])
def test_what_libraries_say_is_cleaned(
    server: RoughServer, caplog: pytest.LogCaptureFixture, kind: type[Exception]
) -> None:
    def fail() -> None:
        raise kind("403 for\nurl https://store/a?X-Amz-Signature=sesame&x=1")

    with caplog.at_level(logging.DEBUG), pytest.raises(SelfdistillError) as raised:
        persistently(fail, Remote("s3://store/a"), "data.train")
    assert "403 for url https://store/a?..." in str(raised.value)
    assert "sesame" not in "".join(traceback.format_exception(raised.value)) + caplog.text


def test_names_and_neighbours() -> None:
    signed = Remote("https://host/d/a.tar?sig=x/y")
    assert (signed.name, signed.scheme) == ("a.tar", "https")
    assert signed.beside(".index").url == "https://host/d/a.tar.index?sig=x/y"
    stored = Remote("s3://bucket/d/a?b.tar")
    assert stored.name == "a?b.tar"
    assert stored.beside(".index").url == "s3://bucket/d/a?b.tar.index"
    assert signed.fingerprint() != Remote("https://host/d/a.tar").fingerprint()
