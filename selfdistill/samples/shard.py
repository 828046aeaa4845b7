"""How the shards of the samples are written."""

import gzip
from collections.abc import Iterable
from pathlib import Path

import webdataset


def write_shard(
    path: Path, prefix: str, extension: str, samples: Iterable[tuple[bytes, int]]
) -> None:
    """Write a gzip-compressed shard whose bytes depend on its samples alone.

    Args:
        path: of the shard.
        prefix: of the samples' keys, in front of their number.
        extension: of the member with the content.
        samples: contents and labels.
    """
    with (
        path.open("wb") as raw,
        gzip.GzipFile("", "wb", compresslevel=9, fileobj=raw, mtime=0) as packed,
        webdataset.TarWriter(packed, user="root", group="root", mtime=0, encoder=False) as tar,
    ):
        for number, (content, label) in enumerate(samples):
            key = f"{prefix}{number:05d}"
            tar.write({"__key__": key, extension: content, "cls": str(label).encode()})
