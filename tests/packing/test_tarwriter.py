"""Tars as others read them."""

import hashlib
import io
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from selfdistill.data.sidecar import write_sidecar
from selfdistill.packing.keys import MAX_KEY, piece_key
from selfdistill.packing.tarwriter import TarWriter

KEYS = ["a/b", "\u00fc" * (MAX_KEY // 2), piece_key("z" * MAX_KEY, 12_345_678, 12_345)]


def write(path: Path) -> tuple[str, str]:
    with open(path, "wb") as file:
        tar = TarWriter(file)
        for i, key in enumerate(KEYS):
            tar.add(key, {"flac": bytes(i * 512), "json": b"{}" * i})
        sums = tar.finish()
        assert tar.size == file.tell()
    return sums


def test_others_read_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    sha256, md5 = write(path)
    data = path.read_bytes()
    assert (sha256, md5) == (hashlib.sha256(data).hexdigest(), hashlib.md5(data).hexdigest())
    assert len(data) % tarfile.RECORDSIZE == 0
    with tarfile.open(path) as tar:
        members = tar.getmembers()
        assert [m.name for m in members] == [f"{k}.{e}" for k in KEYS for e in ("flac", "json")]
        assert [m.size for m in members] == [0, 0, 512, 2, 1024, 4]
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {
            (0, 0, 0, "", "", 0o644)
        }
    assert write_sidecar(path, lengths=None, digest=sha256).exists()


@pytest.mark.skipif(shutil.which("tar") is None, reason="there is no tar")
def test_tar_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    write(path)
    done = subprocess.run(["tar", "-tf", path], capture_output=True, check=True)
    assert len(done.stdout.splitlines()) == 6
    assert not done.stderr


def test_a_file_that_ends_at_a_record_has_an_end_mark() -> None:
    file = io.BytesIO()
    tar = TarWriter(file)
    tar.add("a", {"x": bytes(tarfile.RECORDSIZE - 2 * tarfile.BLOCKSIZE)})
    tar.finish()
    assert file.getvalue().endswith(bytes(2 * tarfile.BLOCKSIZE))
    assert len(file.getvalue()) == 2 * tarfile.RECORDSIZE
