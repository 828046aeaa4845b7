"""Writing a shard."""

import os
from collections import Counter
from collections.abc import Sequence

from selfdistill.data.tarindex import MEMBER_BYTES
from selfdistill.durable import sync_folder
from selfdistill.errors import BadSample
from selfdistill.packing.declaration import Job, Packing, Piece, Sample, Skipped
from selfdistill.packing.folder import writing
from selfdistill.packing.report import ShardReport
from selfdistill.packing.tarwriter import TarWriter
from selfdistill.packing.workers import advance

_TOLD_EVERY = 16
"""Samples."""


def write_shard(packing: Packing, job: Job, name: str, pieces: Sequence[Piece]) -> ShardReport:
    """Write a shard into the job's folder, unless none of its samples is any good.

    Args:
        name: of the file.
        pieces: in the order of the shard.

    Raises:
        OSError: it cannot be written.
        Stopped: the work was called off; nothing is left of the shard.
    """
    lengths: list[float] = []
    skipped: list[Skipped] = []
    changes = Counter[str]()
    with writing(job, job.folder / name) as path:
        with open(path, "wb") as file:
            tar = TarWriter(file)
            for first in range(0, len(pieces), _TOLD_EVERY):
                some, before = pieces[first : first + _TOLD_EVERY], len(lengths)
                for piece in some:
                    try:
                        sample = _sample(packing, job, piece)
                    except BadSample as error:
                        skipped.append((_name(piece), error.reason, error.detail))
                    else:
                        tar.add(piece.key, sample.members)
                        lengths.append(round(sample.length, 4))
                        changes.update([sample.change] if sample.change else [])
                new = lengths[before:]
                advance(len(new), sum(piece.size for piece in some), sum(new))
            sha256, md5 = tar.finish()
            file.flush()
            os.fsync(file.fileno())
        if not lengths:
            path.unlink()
            return ShardReport(name, skipped=skipped)
    sync_folder(job.folder)
    return ShardReport(name, tar.size, sha256, md5, lengths, skipped, dict(changes))


def _sample(packing: Packing, job: Job, piece: Piece) -> Sample:
    sample = packing.read(job, piece)
    if any(len(data) > MEMBER_BYTES for data in sample.members.values()):
        raise BadSample(f"more than {MEMBER_BYTES:,} bytes")
    return sample


def _name(piece: Piece) -> str:
    return piece.input.name if piece.number < 0 else f"{piece.input.name} ({piece.number})"
