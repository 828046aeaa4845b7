"""Files on web servers.

The standard library's client, because it counts time-outs from byte to byte, works after a fork,
and shows every header. Nothing but http and https is followed, credentials not beyond a redirect.
"""

import base64
import http.client
import re
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from functools import cache
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from selfdistill.data.elsewhere.transport import CHUNK, Broken, Changed, Refused, Stamp, Transport

LONGEST_WAIT = 120.0
"""Seconds that a server may ask us to wait."""
TRANSIENT = (408, 425, 429)
PRINTABLE = "".join(map(chr, range(0x21, 0x7F)))


class WebFile(Transport):
    """A file named by an http or https URL, which may hold ``user:password@``."""

    connections = 4

    def __init__(self, url: str, timeout: float) -> None:
        parts = urlsplit(url)
        user, at, host = parts.netloc.rpartition("@")
        # what is not ASCII is written as browsers do
        address = urlunsplit((parts.scheme, host, parts.path, parts.query, ""))
        self._url = quote(address, safe=PRINTABLE)
        self._headers = {}
        if at:
            token = base64.b64encode(unquote(user).encode()).decode()
            self._headers["Authorization"] = f"Basic {token}"
        self._timeout = timeout

    def stamp(self, renewed: bool = False) -> Stamp:
        # not HEAD, which signatures for reading and some servers refuse
        try:
            with self._answer("bytes=0-0") as answer:
                if answer.status == 206:
                    _, total = _given(answer)
                    return Stamp(total, _tag(answer), total is not None)
                return Stamp(_length(answer), _tag(answer), False)
        except Changed:  # an empty file has no first byte
            return Stamp(0, "", False)

    def part(self, start: int, stop: int, stamp: Stamp) -> bytes:
        if start == stop:
            return b""
        with self._answer(f"bytes={start}-{stop - 1}") as answer:
            if answer.status != 206:
                raise Broken("the server gave the whole file where a part was asked for")
            first, total = _given(answer)
            if total != stamp.size or _tag(answer) != stamp.tag:
                raise Changed
            if first != start:
                raise Broken("the server gave another part than was asked for")
            found = answer.read(stop - start)
        if len(found) < stop - start:
            raise Broken(f"{len(found):,} bytes came, {stop - start:,} were announced")
        return found

    def whole(self) -> Generator[bytes]:
        with self._answer() as answer:
            announced, came = _length(answer), 0
            while chunk := answer.read(CHUNK):
                came += len(chunk)
                yield chunk
        if announced is not None and came != announced:
            raise Broken(f"{came:,} bytes came, {announced:,} were announced")

    @contextmanager
    def _answer(self, byte_range: str = "") -> Iterator[http.client.HTTPResponse]:
        request = urllib.request.Request(self._url)
        for name, value in self._headers.items():
            request.add_unredirected_header(name, value)
        if byte_range:
            request.add_header("Range", byte_range)
        try:
            with _opener().open(request, timeout=self._timeout) as answer:
                yield answer
        except urllib.error.HTTPError as error:
            error.close()
            raise _refusal(error) from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self._failure(error) from error

    def _failure(self, error: Exception) -> Exception:
        cause = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(cause, TimeoutError):
            return Broken(f"no byte for {self._timeout:g} s")
        if isinstance(cause, ssl.SSLCertVerificationError):
            return Refused(f"the server's certificate is not trusted ({cause.verify_message})")
        if isinstance(cause, http.client.InvalidURL | ValueError):
            return Refused(f"the URL cannot be used ({cause})")
        return Broken(f"the connection failed ({str(cause) or type(cause).__name__})")


def _opener() -> urllib.request.OpenerDirector:
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(context=_context()),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


@cache
def _context() -> ssl.SSLContext:
    """Made once: to read the certificates that are trusted takes longer than a request."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])  # as the client's own
    return context


def _refusal(error: urllib.error.HTTPError) -> Exception:
    code = error.code
    if code in TRANSIENT or code >= 500:
        said = f"the server answers {code} {error.reason}"
        return Broken(said, _wait(error.headers.get("Retry-After", "")))
    if code == 416:
        return Changed()
    if code in (401, 403):
        return Refused(
            f"the server does not allow it ({code}); check the URL, the credentials, and whether a "
            "signature in it has run out"
        )
    if code in (404, 410):
        return Refused(f"the server has no such file ({code}); check the URL")
    return Refused(f"the server answers {code} {error.reason}; check the URL")


def _wait(asked: str) -> float:
    """Seconds that a ``Retry-After`` asks for: a number or a date."""
    try:
        seconds = float(asked) if asked[:1].isdigit() else _seconds_until(asked)
    except (ValueError, TypeError):
        return 0.0
    return min(max(seconds, 0.0), LONGEST_WAIT)


def _seconds_until(date: str) -> float:
    return parsedate_to_datetime(date).timestamp() - time.time()


def _length(answer: http.client.HTTPResponse) -> int | None:
    announced = answer.headers["Content-Length"] or ""
    return int(announced) if announced.isdecimal() else None


def _given(answer: http.client.HTTPResponse) -> tuple[int, int | None]:
    """Where the part begins that an answer holds, and bytes of the whole; None: not told."""
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers["Content-Range"] or "")
    if found is None:
        raise Broken("the server does not say which part it gave")
    return int(found[1]), None if found[2] == "*" else int(found[2])


def _tag(answer: http.client.HTTPResponse) -> str:
    return (answer.headers["ETag"] or answer.headers["Last-Modified"] or "").removeprefix("W/")
