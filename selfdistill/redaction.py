"""What may be shown and kept of names that can hold secrets: URLs and commands.

Of a URL all but the password and the query string, which may be a signature; a path is taken for
no secret. Of a command (``pipe:...``) its first word and a checksum, by which commands are told
apart.
"""

import hashlib
import logging
import re
from typing import Any

PIPE = "pipe:"
HIDDEN = "..."

_COMMAND = re.compile(rf"{PIPE}(?:[\w./+-]+ )?\.\.\. \(pipe-[0-9a-f]{{8}}\)")
_RUN = re.compile(rf"(?<![\w/.-]){PIPE}(?!(?:[\w./+-]+ )?\.\.\.)[^\n]*", re.IGNORECASE)
_HIDDEN_PARTS = {
    re.compile(r"(https?://)[^\s/?#'\"]*@", re.IGNORECASE): f"{HIDDEN}@",
    # abfss://container@account holds no secret, and in host:port/path@revision nothing is one
    re.compile(r"(\w://)[^\s/?#:'\"]*:(?!\d+[/?#])[^\s@'\"]*@"): f"{HIDDEN}@",
    re.compile(r"(https?://[^\s?'\"]*)\?[^\s'\"]+", re.IGNORECASE): f"?{HIDDEN}",
    # elsewhere a question mark is a wildcard
    re.compile(
        r"(\w://[^\s?'\"]*)\?[^\s'\"]*(?:sig|signature|token|key|secret|password)=[^\s'\"]*",
        re.IGNORECASE,
    ): f"?{HIDDEN}",
}


def command_name(url: str) -> str:
    """Stands for a command."""
    return f"pipe-{hashlib.sha256(url.encode()).hexdigest()[:8]}"


def _shown_command(url: str) -> str:
    """The first word may set a variable, too."""
    word = re.match(r"\s*([\w./+-]+)(?:\s|$)", url.removeprefix(PIPE))
    return f"{PIPE}{word[1] + ' ' if word else ''}{HIDDEN} ({command_name(url)})"


def redacted(text: str) -> str:
    """``text`` without the secrets in it; once done, doing it again changes nothing."""
    if text.startswith(PIPE):
        return text if _COMMAND.fullmatch(text) else _shown_command(text)
    text = _RUN.sub(f"{PIPE}{HIDDEN}", text)
    for part, mark in _HIDDEN_PARTS.items():
        text = part.sub(rf"\1{mark}", text)
    return text


def is_redacted(name: str) -> bool:
    """Whether something is missing from a URL or command, so that it cannot be read."""
    lacks = _COMMAND.fullmatch(name) or name.endswith(f"?{HIDDEN}") or f"://{HIDDEN}@" in name
    return bool(lacks)


def without_secrets(text: str) -> str:
    """``redacted`` in one line."""
    return redacted(" ".join(text.split()))


def all_redacted(value: Any) -> Any:
    """Nested dicts and lists with every text in them redacted."""
    if isinstance(value, dict):
        return {key: all_redacted(part) for key, part in value.items()}
    if isinstance(value, list):
        return [all_redacted(part) for part in value]
    return redacted(value) if isinstance(value, str) else value


class RedactingFormatter(logging.Formatter):
    """Whatever is logged, tracebacks too, without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        return redacted(super().format(record))


def log_to_console(level: int = logging.WARNING) -> None:
    """Show what is logged on stderr, from this level on, without secrets."""
    console = logging.StreamHandler()
    console.setFormatter(RedactingFormatter("%(levelname)s: %(message)s"))
    logging.basicConfig(level=level, handlers=[console])
