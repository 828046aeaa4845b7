"""Finding the samples of all inputs, lot by lot; what is found is kept until all is packed."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from selfdistill.durable import write_synced
from selfdistill.packing.declaration import PIECE, Job, Lot, Packing, Skipped
from selfdistill.packing.folder import writing
from selfdistill.packing.inputs import Inputs
from selfdistill.packing.workers import Bar, advance


def unsurveyed(packing: Packing, job: Job, inputs: Inputs, bar: Bar) -> Iterator[Lot]:
    """The lots whose survey is not kept yet."""
    for lot in packing.lots(job, inputs):
        if _path(job, lot.number).exists():
            bar.skip(lot.size)
        else:
            yield lot


def survey_lot(packing: Packing, job: Job, lot: Lot) -> None:
    """Survey a lot and keep what was found."""
    found = packing.survey(job, lot)
    if found.spill:
        with writing(job, job.spill(lot.number)) as path:
            write_synced(path, found.spill)
    pieces = found.pieces.astype(PIECE)
    pieces["lot"] = lot.number
    content = io.BytesIO()
    skipped = np.frombuffer(json.dumps(found.skipped).encode(), np.uint8)
    np.savez(content, pieces=pieces, skipped=skipped)
    with writing(job, _path(job, lot.number)) as path:
        write_synced(path, content.getvalue())
    advance(len(pieces), lot.size, float(pieces["length"].sum()))


def gather(job: Job) -> tuple[np.ndarray, list[Skipped]]:
    """What was found in all lots, in their order: ``PIECE`` [n], and what was skipped."""
    pieces: list[np.ndarray] = [np.empty(0, PIECE)]
    skipped: list[Skipped] = []
    for path in sorted(job.state.glob("lot-*.npz")):
        with np.load(path, allow_pickle=False) as file:
            pieces.append(file["pieces"])
            skipped += [tuple(entry) for entry in json.loads(file["skipped"].tobytes())]
    return np.concatenate(pieces), skipped


def _path(job: Job, lot: int) -> Path:
    return job.state / f"lot-{lot:06d}.npz"
