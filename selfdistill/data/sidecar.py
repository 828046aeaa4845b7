"""The index that lies beside a shard: ``train-000000.tar.index`` beside ``train-000000.tar``.

It spares a start from reading every header, and lets a shard elsewhere be used without fetching
all of it. It is a safetensors file, and believed no further than the tar's own headers would be.
"""

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from selfdistill.data.headers import list_tar
from selfdistill.data.sources import open_file
from selfdistill.data.tarindex import BLOCK, MEMBER_BYTES, Contents, TarIndex, starts
from selfdistill.durable import write_atomically

SUFFIX = ".index"
VERSION = 1
SIDECAR_BYTES = 256 << 20
HEADER_BYTES = 1 << 20
ENTRY = "shard"
"""The one entry of the file's metadata; safetensors writes several in no certain order."""
ARRAYS = {
    "names": np.uint8,
    "name_lengths": np.uint32,
    "members": np.uint32,
    "extension": np.uint32,
    "block": np.uint32,
    "size": np.int32,
}


class BadSidecar(Exception):
    """An index that cannot be what ``write_sidecar`` wrote."""


@dataclass(frozen=True)
class Sidecar:
    """What is known of a shard without reading it.

    Attributes:
        index: of the samples asked for.
        lengths: float32 [n], the length of each in the modality's unit, NaN where it is unknown;
            None: none is known.
        size: bytes of the shard's file.
        sha256: of the shard's file, hexadecimal; empty: not known.
    """

    index: TarIndex
    lengths: np.ndarray | None
    size: int
    sha256: str


def write_sidecar(shard: Path, *, lengths: np.ndarray | None, digest: str) -> Path:
    """Write the index of a local shard beside it.

    Args:
        lengths: float32 [n], of the samples in the order of their first members, in the modality's
            unit, NaN where unknown; None: none is known.
        digest: sha256 of the file, hexadecimal.

    Returns:
        The path of the index.

    Raises:
        UserError: the shard cannot be read.
        tarfile.TarError: it is no tar.
        ValueError: there is not one length for each sample.
        OSError: the index cannot be written.
    """
    source = open_file(shard, "shard")
    contents = list_tar(source)
    content = encode_sidecar(
        contents,
        size=source.identity()[0],
        tar_size=source.size,
        digest=digest,
        lengths=lengths,
    )
    path = shard.with_name(shard.name + SUFFIX)
    write_atomically(path, content)
    return path


def encode_sidecar(
    contents: Contents,
    *,
    size: int,
    tar_size: int,
    digest: str,
    lengths: np.ndarray | None = None,
) -> bytes:
    """The content of an index file; equal arguments give equal bytes.

    Args:
        size: bytes of the shard's file.
        tar_size: bytes of the tar in it.
        digest, lengths: see ``Sidecar``; the lengths are those of all samples.

    Raises:
        ValueError: there is not one length for each sample.
    """
    if lengths is not None and lengths.shape != (len(contents),):
        raise ValueError(f"lengths of shape {lengths.shape} for {len(contents)} samples")
    arrays = {
        "names": contents.names,
        "name_lengths": np.diff(contents.name_ends, prepend=np.uint32(0)),
        "members": np.diff(contents.first),
        "extension": contents.extension,
        "block": contents.block,
        "size": contents.size,
    }
    if lengths is not None:
        arrays["lengths"] = lengths.astype(np.float32)
    about = {
        "version": VERSION,
        "bytes": size,
        "tar_bytes": tar_size,
        "sha256": digest,
        "extensions": contents.extensions,
        "repeated": contents.repeated,
        "faults": contents.faults,
    }
    return save(arrays, {ENTRY: json.dumps(about, sort_keys=True)})


def read_sidecar(content: bytes, extensions: Sequence[str]) -> Sidecar:
    """What an index file says of the samples with one of ``extensions``.

    Args:
        content: of the file, whoever made it.
        extensions: as in ``Contents.select``.

    Raises:
        BadSidecar: it is none, or says what cannot be.
    """
    try:
        about, arrays = _opened(content)
        contents = _contents(about, arrays)
        lengths = arrays.get("lengths")
        size, digest = about["bytes"], about["sha256"]
        if not _is_count(size) or not isinstance(digest, str):
            raise BadSidecar("its sizes and sums are of the wrong type")
        if lengths is not None and lengths.dtype != np.float32:
            raise BadSidecar("lengths are no float32")
        if lengths is not None and lengths.shape != (len(contents),):
            raise BadSidecar("there is not one length for each sample")
        index, kept = contents.select(extensions)
        return Sidecar(index, None if lengths is None else lengths[kept], size, digest)
    except (KeyError, TypeError, ValueError, RecursionError, SafetensorError) as error:
        raise BadSidecar(" ".join(f"{type(error).__name__}: {error}".split())[:200]) from error


def _opened(content: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    if len(content) > SIDECAR_BYTES:
        raise BadSidecar(f"{len(content):,} bytes are too many")
    if len(content) < 8:
        raise BadSidecar("it is cut short")
    (header,) = struct.unpack("<Q", content[:8])
    if header > min(HEADER_BYTES, len(content) - 8):
        raise BadSidecar(f"a header of {header:,} bytes")
    about = json.loads(json.loads(content[8 : 8 + header])["__metadata__"][ENTRY])
    if about["version"] != VERSION:
        raise BadSidecar(f"version {about['version']!r}, this package reads {VERSION}")
    return about, load(content)


def _contents(about: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Contents:
    names, name_lengths, members, extension, block, size = (
        _array(arrays, name, kind) for name, kind in ARRAYS.items()
    )
    extensions, repeated, faults = about["extensions"], about["repeated"], about["faults"]
    if not _is_count(about["tar_bytes"]) or not _are_texts(extensions) or not _are_texts(faults):
        raise BadSidecar("its metadata is of the wrong type")
    # in int64, where sums of what is claimed cannot wrap around
    if name_lengths.sum(dtype=np.int64) != len(names) or len(members) != len(name_lengths):
        raise BadSidecar("its names do not fit together")
    if _lead_out(names, name_lengths):
        raise BadSidecar("a name leads out of the shard")
    if members.sum(dtype=np.int64) != len(block) or not len(block) == len(size) == len(extension):
        raise BadSidecar("its members do not fit together")
    if len(block) and (
        extension.max() >= len(extensions)
        or members.min() < 1
        or block.min() < 1
        or size.min() < 0
        or size.max() > MEMBER_BYTES
        or (block.astype(np.int64) * BLOCK + size).max() > about["tar_bytes"]
    ):
        raise BadSidecar("a member lies outside the shard")
    return Contents(
        names=names,
        name_ends=np.cumsum(name_lengths, dtype=np.uint32),
        first=starts(members),
        extension=extension,
        block=block,
        size=size,
        extensions=[extension.lower() for extension in extensions],
        repeated=[_repetition(found, len(extensions)) for found in repeated],
        faults=faults,
    )


def _array(arrays: Mapping[str, np.ndarray], name: str, kind: type) -> np.ndarray:
    found = arrays[name]
    if found.dtype != kind or found.ndim != 1:
        raise BadSidecar(f"{name} is of the wrong kind")
    return found


def _lead_out(names: np.ndarray, lengths: np.ndarray) -> bool:
    text: bytes = names.tobytes()
    ends = np.cumsum(lengths, dtype=np.int64)
    keys = (text[end - length : end] for end, length in zip(ends, lengths, strict=True))
    if b".." not in text:
        return bool((names[ends[lengths > 0] - lengths[lengths > 0]] == ord("/")).any())
    return any(key.startswith(b"/") or b".." in key.split(b"/") for key in keys)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _are_texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def _repetition(found: Any, extensions: int) -> tuple[int, int, str]:
    number, count, name = found
    if not _is_count(number) or not _is_count(count) or not isinstance(name, str):
        raise BadSidecar("its metadata is of the wrong type")
    if number >= extensions:
        raise BadSidecar("it repeats an extension that it does not have")
    return number, count, name
