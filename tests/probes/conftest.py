import io
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from vectors import CENTRES, WIDTH


@pytest.fixture
def write_shard(tmp_path: Path) -> Callable[..., Path]:
    """(name, labels) to a shard with one sample per label; None: no label."""

    def write(name: str, labels: Sequence[int | None]) -> Path:
        rng = np.random.default_rng(len(name) + len(labels))
        path = tmp_path / f"{name}.tar"
        with tarfile.open(path, "w") as tar:
            for i, label in enumerate(labels):
                tokens = rng.normal(size=(1 + i % 5, WIDTH)).astype(np.float32)
                tokens += CENTRES[(label or 0) % WIDTH]
                members = {"vec": tokens.tobytes()}
                if label is not None:
                    members["cls"] = str(label).encode()
                for extension, data in members.items():
                    info = tarfile.TarInfo(f"{i:05d}.{extension}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        return path

    return write
