"""What the names in a config stand for: files of this machine, and files elsewhere."""

import glob
import importlib.resources
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from braceexpand import braceexpand

from selfdistill.config import DataConfig
from selfdistill.data.elsewhere.address import WEB, Access, Remote
from selfdistill.data.elsewhere.remote import persistently
from selfdistill.data.elsewhere.stores import SCHEMES, matches, members, missing_package
from selfdistill.data.sidecar import SUFFIX
from selfdistill.errors import UserError
from selfdistill.redaction import PIPE, is_redacted, redacted, without_secrets

Location = Path | Remote
"""Where a shard is."""

SAMPLE_SCHEME = "sample://"
SAMPLES = Path(str(importlib.resources.files("selfdistill"))) / "samples"
SUFFIXES = (".tar", ".tar.gz", ".tgz")

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_WILD = re.compile(r"[*?\[]")
_SHELL = re.compile(r"[`|;<>\\\x00-\x1f\x7f]|\$\(")
"""What no URL needs as it stands, and a shell would take for more than a name."""


def resolve(
    patterns: Sequence[str], key: str = "data.train", access: Access | None = None
) -> list[Location]:
    """The shards that the config names, in the order of the config.

    Args:
        patterns: paths, globs, brace lists such as ``train-{0000..0099}.tar``, folders (all shards
            in them that are not hidden, sorted), ``sample://image/train.tar.gz`` for the data in
            the package, URLs (http, https, and those of ``stores``), or ``pipe:COMMAND``.
        key: the config's name of ``patterns``, for the error messages.
        access: how files elsewhere are reached; None: the defaults.

    Raises:
        UserError: nothing is named, a name matches nothing, or it cannot be used.
        SelfdistillError: a store could not be listed.
    """
    access = access or Access.of(DataConfig())
    if not patterns:
        raise UserError(f"{key}: is empty; give the paths of tar shards, or {SAMPLE_SCHEME}NAME")
    return [location for pattern in patterns for location in _named(pattern, key, access)]


def _named(pattern: str, key: str, access: Access) -> list[Location]:
    if pattern.startswith(SAMPLE_SCHEME):
        return [_sample(pattern, key)]
    if os.path.exists(pattern):
        return [*_shards_at(pattern, key)]
    if is_redacted(pattern):
        raise UserError(
            f"{key}: '{pattern}' lacks what may be a secret, which no run keeps; give all of it, "
            f"as {key}=[...]"
        )
    try:
        if not (scheme := _SCHEME.match(pattern)):
            names = list(braceexpand(os.path.expanduser(pattern)))
            return [path for name in names for path in _files(name, pattern, key)]
        _check(pattern, scheme[1].lower(), key, access)
        remotes = [Remote(name) for name in braceexpand(pattern)]
    except ValueError as error:
        shown = without_secrets(pattern)
        raise UserError(f"{key}: '{shown}' has unbalanced braces; check them") from error
    return [found for remote in remotes for found in _elsewhere(remote, key, access)]


def _files(name: str, pattern: str, key: str) -> list[Path]:
    hits = [name] if os.path.exists(name) else sorted(glob.glob(name, recursive=True))
    hits = [hit for hit in hits if not hit.endswith(SUFFIX)]
    if not hits:
        part = "" if name == pattern else f" (part of '{pattern}')"
        raise UserError(f"{key}: no file matches '{name}'{part}; check the path")
    return [path for hit in hits for path in _shards_at(hit, key)]


def _shards_at(name: str, key: str) -> list[Path]:
    path = Path(name)
    if not path.is_dir():
        return [path]
    try:
        inside = sorted(path.iterdir())
    except OSError as error:
        raise UserError(f"{key}: cannot read folder '{name}': {error.strerror}") from error
    # as for globs; macOS puts a ._NAME beside every file on the disks of others
    shards = [p for p in inside if p.name.endswith(SUFFIXES) and not p.name.startswith(".")]
    if not shards:
        raise UserError(
            f"{key}: folder '{name}' has no {', '.join(SUFFIXES)} file; check the path, or make "
            "shards of what is in it with selfdistill pack"
        )
    return shards


def _sample(pattern: str, key: str) -> Path:
    known = {
        path.relative_to(SAMPLES).as_posix(): path
        for path in sorted(SAMPLES.rglob("*"))
        if path.name.endswith(SUFFIXES)
    }
    name = pattern.removeprefix(SAMPLE_SCHEME)
    if name not in known:
        choices = ", ".join(SAMPLE_SCHEME + name for name in known)
        raise UserError(f"{key}: there is no '{pattern}'; choose from {choices}")
    return known[name]


def _check(pattern: str, scheme: str, key: str, access: Access) -> None:
    """Refuse URLs of kinds that are not read, and all that asks for more than a file."""
    shown = without_secrets(pattern)
    if pattern.startswith(PIPE):
        if not access.allow_pipe:
            unless = "; download it first, or name it in a config"
            if _is_of_config(key):
                unless = " unless data.allow_pipe=true; set it only in a config that you trust"
            raise UserError(
                f"{key}: '{Remote(pattern)}' would run a command in a shell, which is refused"
                f"{unless}"
            )
        return
    if scheme in ("file", "local"):
        raise UserError(f"{key}: '{shown}' is no path; name local files without {scheme}:")
    if scheme not in (*WEB, *SCHEMES) or not pattern[len(scheme) :].startswith("://"):
        kinds = ", ".join(f"{known}://" for known in (*WEB, *SCHEMES))
        raise UserError(f"{key}: cannot read '{shown}'; give local paths, or URLs with {kinds}")
    if "::" in re.sub(r"^https?://[^/]*", "", pattern):
        raise UserError(f"{key}: '{shown}' chains file systems with ::, which is not read")
    if (found := _SHELL.search(pattern)) and not access.allow_pipe:
        ways = f"write it as %{ord(found[0][0]):02X}"
        if _is_of_config(key):
            ways += ", or set data.allow_pipe=true if it is meant"
        raise UserError(
            f"{key}: '{shown}' holds {found[0]!r}, which a shell would take for more than a name; "
            f"{ways}"
        )
    if scheme in SCHEMES and redacted(pattern) != pattern:
        raise UserError(
            f"{key}: '{shown}' holds credentials, which are not read from the URLs of stores; set "
            "them in the environment"
        )
    if scheme in SCHEMES and (missing := missing_package(pattern)):
        raise UserError(f"{key}: '{shown}' needs {missing}")


def _is_of_config(key: str) -> bool:
    """Whether a config has the names, which may allow more; on a command line nothing does."""
    return "." in key


def _elsewhere(remote: Remote, key: str, access: Access) -> list[Location]:
    if remote.is_command:
        return [remote]
    path = remote.url.partition("?")[0] if remote.scheme in WEB else remote.url
    if remote.scheme in WEB:
        place = path.partition("://")[2].partition("/")[2]
        if path == remote.url and place[-1:] in ("", "/"):
            raise UserError(
                f"{key}: '{remote}' is a folder, but web servers do not list their files; give all "
                "of their URLs, or a brace list such as train-{0000..0099}.tar behind this one"
            )
        if re.search(r"[*\[]", place):
            raise UserError(
                f"{key}: '{remote}' has wildcards, but web servers do not list their files; give a "
                "brace list such as train-{0000..0099}.tar"
            )
        return [remote]

    def ask(find: Callable[[str, float], list[str] | None]) -> list[str] | None:
        return persistently(lambda: find(remote.url, access.timeout), remote, key)

    if _WILD.search(path):
        found = _shards_of(ask(matches) or [])
    elif not path.endswith(SUFFIXES):
        if (inside := ask(members)) is None:
            return [remote]
        found = _shards_of(inside)
    else:
        return [remote]
    if not found:
        raise UserError(
            f"{key}: '{remote}' has no {', '.join(SUFFIXES)} file; check the URL and, for what is "
            "not public, the credentials"
        )
    return found


def _shards_of(urls: Iterable[str]) -> list[Location]:
    return [Remote(url) for url in urls if url.endswith(SUFFIXES)]
