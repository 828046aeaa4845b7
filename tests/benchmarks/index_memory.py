"""Memory and time that the index of a large data set takes.

    python tests/benchmarks/index_memory.py [SAMPLES] [SAMPLES_PER_SHARD]

One shard of samples of two members, with keys as ImageNet's, stands for all: it is linked as often
as needed, and each link is indexed on its own. Then workers are forked which read samples at
random; what they do not share with the main process is what a worker costs.
"""

import hashlib
import io
import multiprocessing
import os
import random
import re
import sys
import tarfile
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from selfdistill.data.shards import ShardSet
from selfdistill.data.sidecar import SUFFIX, write_sidecar

WORKERS = 4
READS = 20_000


def main() -> None:
    samples, per_shard = (
        int(x) for x in (sys.argv[1:] + ["10000000", "1000"][len(sys.argv) - 1 :])
    )
    with TemporaryDirectory() as folder:
        paths = links(Path(folder), samples // per_shard, per_shard)
        before, start = resident(), time.perf_counter()
        shards = ShardSet(paths, ["jpg"])
        seconds, index = time.perf_counter() - start, resident() - before
        lengths = shards.lengths(lambda members: 1 / 0)
        print(
            f"{len(shards):,} samples of 2 members in {len(paths):,} shards: {index / 1e6:,.0f} MB "
            f"({index / len(shards):.1f} bytes each), with lengths as an array "
            f"{(resident() - before) / 1e6:,.0f} MB, {seconds:.0f} s to open"
        )
        fork = multiprocessing.get_context("fork")
        workers = [fork.Process(target=read, args=(shards, seed)) for seed in range(WORKERS)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert len(lengths) == len(shards)


def links(folder: Path, count: int, per_shard: int) -> list[Path]:
    shard = folder / "shard.tar"
    with tarfile.open(shard, "w") as archive:
        for i in range(per_shard):
            for extension in ("jpg", "cls"):
                info = tarfile.TarInfo(f"n0144076{i % 10}/{i:010d}.{extension}")
                info.size = 4
                archive.addfile(info, io.BytesIO(b"data"))
    digest = hashlib.sha256(shard.read_bytes()).hexdigest()
    sidecar = write_sidecar(shard, lengths=np.ones(per_shard, np.float32), digest=digest)
    paths = [folder / f"train-{number:06d}.tar" for number in range(count)]
    for path in paths:
        path.symlink_to(shard)
        path.with_name(path.name + SUFFIX).symlink_to(sidecar)
    return paths


def read(shards: ShardSet, seed: int) -> None:
    chance = random.Random(seed)
    before = unshared()
    for _ in range(READS):
        shards.read(chance.randrange(len(shards)))
    print(f"a worker after {READS:,} reads all over it: {(unshared() - before) / 1e6:,.0f} MB more")


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def unshared() -> int:
    text = Path("/proc/self/smaps_rollup").read_text()
    return sum(1024 * int(kb) for kb in re.findall(r"Private_\w+: +(\d+) kB", text))


if __name__ == "__main__":
    main()
