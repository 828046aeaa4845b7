"""Lengths of samples that no index tells: measured once, and kept.

They go into the index beside a shard, or where that cannot be written, and for shards elsewhere,
into the folder that keeps these. The processes of a machine take turns, so that one of them
measures and the others find what it has kept.
"""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from tqdm import tqdm

from selfdistill.data.elsewhere.cache import Cache
from selfdistill.data.shard import Shard
from selfdistill.errors import BadSample, UserError


def complete(
    parts: list[np.ndarray],
    shards: Sequence[Shard],
    extensions: Sequence[str],
    measure: Callable[[int], float],
    folder: Path,
) -> None:
    """Fill in what is not known.

    Args:
        parts: float32 [n] of each shard, the lengths of its samples; they are replaced.
        shards: as many.
        extensions: by which their samples were chosen.
        measure: number of a sample among those of all shards to its length; raises ``BadSample``,
            which counts as 0.
        folder: for what is kept apart from the shards.
    """
    gaps = [number for number, part in enumerate(parts) if not is_known(part).all()]
    if not gaps:
        return
    starts = np.cumsum([0, *map(len, parts)])
    with ExitStack() as stack:
        cache = None
        try:
            cache = Cache(folder, 0)
            stack.enter_context(cache.turn("lengths", "another process measures the samples"))
        except (UserError, OSError):  # then every process measures for itself
            pass
        total = sum(int((~is_known(parts[number])).sum()) for number in gaps)
        bar = stack.enter_context(tqdm(None, "measuring samples", total, disable=None))
        for number in gaps:
            part = _kept(shards[number], extensions, cache, parts[number])
            unknown = np.flatnonzero(~is_known(part))
            for place in unknown:
                try:
                    part[place] = measure(int(starts[number] + place))
                except BadSample:
                    part[place] = 0
                bar.update()
            parts[number] = part
            if len(unknown) and not shards[number].keep_lengths(part, extensions):
                _keep(shards[number], extensions, cache, part)


def is_known(lengths: np.ndarray) -> np.ndarray:
    """Bool [n]; an index may claim anything."""
    return (lengths >= 0) & (lengths < np.inf)


def _kept(
    shard: Shard, extensions: Sequence[str], cache: Cache | None, known: np.ndarray
) -> np.ndarray:
    """What is kept of a shard by now, in place of what was known, where it is more."""
    found = shard.kept_lengths(extensions)
    if (name := _name(shard, extensions)) and cache is not None:
        note = cache.note(name) or b""
        if len(note) == known.nbytes:
            found = np.frombuffer(note, np.float32)
    if found is None or len(found) != len(known):
        return known.copy()
    return np.where(is_known(known), known, found)


def _keep(
    shard: Shard, extensions: Sequence[str], cache: Cache | None, lengths: np.ndarray
) -> None:
    if (name := _name(shard, extensions)) and cache is not None:
        cache.keep_note(name, lengths.tobytes())


def _name(shard: Shard, extensions: Sequence[str]) -> str:
    """Stands for the samples of one state of a shard; empty: its states cannot be told apart."""
    state = shard.state()
    if not state:
        return ""
    return hashlib.sha256("\n".join((state, *extensions)).encode()).hexdigest()[:32] + "-lengths"
