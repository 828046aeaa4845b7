"""What a step costs beside the model: masks, the teacher's average and the optimiser.

    python tests/benchmarks/bookkeeping.py [masks parameters] [--rounds 15] [--json FILE]

Each is measured beside what people write today, in turns, by processor time of one thread. Masks
are those of the published recipes; the other way draws them row by row, in the manner of the
originals: the starts of a row's spans by ``choice`` and their places by a list comprehension,
squares and rectangles one slice of the row's grid at a time, and afterwards single places added or
taken away until the count is right. For speech there is transformers' own function, too. Of ours
the bool map is measured alone and with the indices that ``Masks`` keeps beside it. The average and
AdamW run over the 86 M parameters of a ViT-B; there the other ways are ``mul_`` and ``add_``
parameter by parameter, and torch's AdamW at its defaults.
"""

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import Action, in_turns, median, origin, ratio_of, write_result

from selfdistill.config_files.load import load_config
from selfdistill.engine.optim import build_optimizer
from selfdistill.masking import block_masks, painted_squares, row_keys, span_masks
from selfdistill.modalities.base import load_modality
from selfdistill.objective.data2vec import Data2Vec
from selfdistill.types import Masks

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "image" / "base_imagenet.yaml"
OURS = "ours"
FRAMES, CLIPS = 779, 16  # 15.6 s, the longest clip of the published runs
TOKENS, PASSAGES = 512, 32
GRID, IMAGES, MASKS = (14, 14), 64, 16
PATCHES = math.prod(GRID)
SPEECH: dict[str, Any] = {"prob": 0.65, "length": 10}
TEXT: dict[str, Any] = {"prob": 0.35, "length": 4}
Draw = Callable[[], np.ndarray]


@dataclass(frozen=True)
class Contest:
    """Ways to do the same; ``OURS`` is what the others are compared with.

    Attributes:
        times: each way is called this often per round.
    """

    title: str
    ways: dict[str, Action]
    times: int = 1


def run(contest: Contest, rounds: int) -> dict[str, Any]:
    """Times as plain JSON values, and a line for each way on stdout."""
    found = in_turns(
        {name: partial(_repeat, way, contest.times) for name, way in contest.ways.items()}, rounds
    )
    ours = [seconds.processor for seconds in found[OURS]]
    print(f"\n{contest.title}")
    result: dict[str, Any] = {}
    for name, seconds in found.items():
        own = median(seconds).processor / contest.times
        ratio = ratio_of([s.processor for s in seconds], ours)
        result[name] = {"processor_seconds": own, "ratio": ratio._asdict()}
        print(f"  {name:40}{1e3 * own:10.2f} ms  {ratio} times ours", flush=True)
    return result


def _repeat(way: Action, times: int) -> None:
    for _ in range(times):
        way()


def masks() -> Iterator[Contest]:
    rng = np.random.default_rng(0)
    speech = partial(_our_spans, CLIPS, FRAMES, **SPEECH)
    loop = partial(spans_row_by_row, rng, CLIPS, FRAMES, **SPEECH)
    thinned = partial(speech, equal_counts=True)
    ways = _ways(thinned, partial(loop, equal_counts=True))
    yield Contest(f"spans, {CLIPS} clips of {FRAMES} frames, thinned out to one count", ways, 10)
    ways = _ways(speech, loop)
    if find_spec("transformers"):
        ways["transformers"] = _of_transformers()
    yield Contest(f"spans, {CLIPS} clips of {FRAMES} frames", ways, 10)
    ways = _ways(
        partial(_our_spans, PASSAGES, TOKENS, **TEXT, cut_at_end=True),
        partial(spans_row_by_row, rng, PASSAGES, TOKENS, **TEXT, cut_at_end=True),
    )
    yield Contest(f"spans, {PASSAGES} passages of {TOKENS} tokens", ways, 10)
    ways = _ways(_our_rectangles, partial(rectangles_row_by_row, rng))
    yield Contest(f"rectangles, {IMAGES} images of {GRID[0]} x {GRID[1]} patches", ways, 2)
    ways = _ways(_our_squares, partial(squares_row_by_row, rng))
    yield Contest(f"squares, {IMAGES} images with {MASKS} masks each", ways)


def _ways(ours: Callable[[np.ndarray], np.ndarray], loop: Draw) -> dict[str, Action]:
    """Ours with fresh keys each time, alone and with indices, and the loop."""
    shares = [masked.mean() for masked in (ours(_keys()), loop())]
    assert abs(shares[0] - shares[1]) < 0.05, f"the ways mask {shares} of all"

    def with_indices() -> Masks:
        masked = ours(_keys())
        return Masks.from_bool(masked.reshape(len(masked), -1))

    return {OURS: lambda: ours(_keys()), "ours, with indices": with_indices, "row by row": loop}


_batches = count()


def _keys() -> np.ndarray:
    """Of the largest batch here; the others take the first ones."""
    return row_keys(next(_batches), np.arange(IMAGES * MASKS))


def _our_spans(rows: int, total: int, keys: np.ndarray, **settings: Any) -> np.ndarray:
    return span_masks(keys[:rows], np.full(rows, total), total, **settings)


def _our_rectangles(keys: np.ndarray) -> np.ndarray:
    return block_masks(keys[:IMAGES], GRID, count=120, min_block=16, max_block=196)


def _our_squares(keys: np.ndarray) -> np.ndarray:
    return painted_squares(keys, GRID, prob=0.8, length=3, adjust=0.07, inverse=True)


def _of_transformers() -> Draw:
    from transformers.models.data2vec.modeling_data2vec_audio import _compute_mask_indices

    return partial(_compute_mask_indices, (CLIPS, FRAMES), SPEECH["prob"], SPEECH["length"])


def spans_row_by_row(
    rng: np.random.Generator,
    rows: int,
    total: int,
    *,
    prob: float,
    length: int,
    cut_at_end: bool = False,
    equal_counts: bool = False,
) -> np.ndarray:
    """bool [rows, total]; the settings are those of ``span_masks``."""
    chosen = []
    for _ in range(rows):
        spans = int(prob * total / length + rng.random())
        starts = rng.choice(total if cut_at_end else total - length, spans, replace=False)
        places = np.array([start + step for start in starts for step in range(length)])
        chosen.append(np.unique(places[places < total]))
    fewest = min(map(len, chosen))
    masked = np.zeros((rows, total), dtype=bool)
    for row, places in zip(masked, chosen, strict=True):
        if equal_counts and len(places) > fewest:
            places = rng.choice(places, fewest, replace=False)
        row[places] = True
    return masked


def squares_row_by_row(rng: np.random.Generator) -> np.ndarray:
    """bool [IMAGES * MASKS, h, w]; squares of 3 x 3 patches stay visible, 39 patches in all."""
    masked = np.ones((IMAGES * MASKS, *GRID), dtype=bool)
    visible = int(PATCHES * (1 - 0.8))
    squares = int(PATCHES * (1 - 0.8 + 0.07) / 3**2)
    for grid in masked:
        for centre in rng.integers(PATCHES, size=squares):
            top, left = centre // GRID[1] - 1, centre % GRID[1] - 1
            grid[max(top, 0) : top + 3, max(left, 0) : left + 3] = False
        flat = grid.reshape(-1)
        missing = visible - int((~flat).sum())
        candidates = np.flatnonzero(flat if missing > 0 else ~flat)
        flat[rng.choice(candidates, abs(missing), replace=False)] = missing < 0
    return masked


def rectangles_row_by_row(rng: np.random.Generator) -> np.ndarray:
    """bool [IMAGES, h, w]; about 120 patches masked by rectangles of at least 16."""
    masked = np.zeros((IMAGES, *GRID), dtype=bool)
    for grid in masked:
        left, added = 120, 1
        while left > 0 and added:
            for _ in range(10):
                added = _rectangle(rng, grid, left)
                if added:
                    left -= added
                    break
    return masked


def _rectangle(rng: np.random.Generator, grid: np.ndarray, most: int) -> int:
    """One attempt; how many patches it masked, 0 if it failed."""
    area = 16 + (most - 16) * rng.random()  # from most to 16 once less than that is left
    aspect = math.exp(rng.uniform(math.log(0.3), -math.log(0.3)))
    height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    if height >= GRID[0] or width >= GRID[1]:
        return 0
    top, left = rng.integers(GRID[0] - height + 1), rng.integers(GRID[1] - width + 1)
    part = grid[top : top + height, left : left + width]
    added = int((~part).sum())
    if not 0 < added <= most:
        return 0
    part[:] = True
    return added


def parameters() -> Iterator[Contest]:
    config = load_config(CONFIG, ["run_dir=unused"], load_modality)
    model = Data2Vec(config)
    millions = sum(p.numel() for p in model.student.parameters()) / 1e6
    decay = config.teacher.ema_decay
    pairs = [*zip(model.teacher.parameters(), model.student.parameters(), strict=True)]

    @torch.no_grad()
    def by_parameter() -> None:
        for theirs, ours in pairs:
            theirs.mul_(decay).add_(ours, alpha=1 - decay)

    yield Contest(
        f"average of {millions:.0f} M parameters",
        {OURS: lambda: model.update_teacher(decay), "mul_ and add_ by parameter": by_parameter},
    )
    learned = [p for p in model.parameters() if p.requires_grad]
    for parameter in learned:
        parameter.grad = torch.randn_like(parameter) * 1e-3
    optim = config.optim
    default = torch.optim.AdamW(
        learned, lr=optim.lr, betas=optim.betas, eps=optim.eps, weight_decay=optim.weight_decay
    )
    ours = build_optimizer(model, optim)
    yield Contest(
        f"optimiser, {sum(p.numel() for p in learned) / 1e6:.0f} M parameters",
        {OURS: ours.step, "torch's AdamW at its defaults": default.step},
    )


PARTS = {"masks": masks, "parameters": parameters}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="masks parameters")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    torch.set_num_threads(1)
    results = {}
    for name in options.parts or PARTS:
        for contest in PARTS[name]():
            results[contest.title] = run(contest, options.rounds)
    print(f"\nmedians of {options.rounds} rounds; in brackets {_interval(results)}")
    packages = ("numpy", "torch", *(("transformers",) if find_spec("transformers") else ()))
    write_result(options.json, {**origin(*packages), "results": results})


def _interval(results: dict[str, Any]) -> str:
    return next(iter(results.values()))[OURS]["ratio"]["interval"]


if __name__ == "__main__":
    main()
