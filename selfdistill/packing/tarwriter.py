"""Tar shards whose bytes are a function of their samples alone."""

import hashlib
import tarfile
from collections.abc import Mapping
from typing import BinaryIO

import numpy as np

MODE = 0o644


class TarWriter:
    """Writes samples one after the other, members of a sample side by side.

    Headers have no time, no owner and one mode.

    Args:
        file: open for writing.

    Attributes:
        size: bytes written.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._sha256, self._md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
        self.size = 0

    def add(self, key: str, members: Mapping[str, bytes]) -> None:
        """Write a sample.

        Args:
            key: at most ``keys.MAX_KEY`` bytes and a number.
            members: by extension, in this order.
        """
        for extension, data in members.items():
            header = tarfile.TarInfo(f"{key}.{extension}")
            header.size, header.mode = len(data), MODE
            self._write(header.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict"))
            self._write(data)
            self._write(bytes(-len(data) % tarfile.BLOCKSIZE))

    def finish(self) -> tuple[str, str]:
        """Write the end mark; returns SHA-256 and MD5 of the file."""
        end = 2 * tarfile.BLOCKSIZE
        self._write(bytes(end + -(self.size + end) % tarfile.RECORDSIZE))
        return self._sha256.hexdigest(), self._md5.hexdigest()

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._sha256.update(data)
        self._md5.update(data)
        self.size += len(data)


def planned_size(member: np.ndarray) -> np.ndarray:
    """Bytes in a tar of samples whose members have ``member`` bytes, about."""
    return member + tarfile.BLOCKSIZE + tarfile.BLOCKSIZE // 2
