"""Names of files to keys of samples."""

import hashlib
import unicodedata
from pathlib import PurePosixPath

MAX_KEY = 72
"""Bytes; a tar header has 100 for the name, which ends in a number and an extension."""


def sample_key(name: str) -> str:
    """The key of what has the relative path ``name``.

    Letters, digits, - and _ of any script stay, folders too, and all else becomes _: a dot would
    end the key, and what is odd in one file system or shell is not in another. Of a long path the
    end is kept, behind a number that tells it from others.
    """
    plain = unicodedata.normalize("NFC", name.removesuffix(_suffix(name)))
    key = "".join(c if c.isalnum() or c in "-_/" else "_" for c in plain)
    if len(key.encode()) <= MAX_KEY:
        return key
    digest = hashlib.sha256(key.encode()).hexdigest()[:12]
    tail = key.encode()[-(MAX_KEY - len(digest) - 1) :].decode("utf-8", "ignore")
    return f"{digest}-{tail.lstrip('/')}"


def piece_key(base: str, number: int, part: int) -> str:
    """The key of a part of an input; @ is in no base."""
    if number < 0:
        return base
    return f"{base}@{number:05d}" + (f"-{part:03d}" if part else "")


def _suffix(name: str) -> str:
    """What a name ends in that says how the file is written: one suffix, or a compressed one."""
    suffixes = PurePosixPath(name).suffixes
    is_compressed = suffixes and suffixes[-1].lower() in (".gz", ".zst")
    return "".join(suffixes[-2:] if is_compressed else suffixes[-1:])
