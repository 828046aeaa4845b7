"""Peak memory of a training step against the number of masks per sample, for both strategies.

    python tests/benchmarks/memory.py configs/image/base_visible.yaml [--batch 2] [key=value ...]

Tensors alive during forward and backward pass are counted on the CPU, weights and gradients
included, optimiser state not. Inputs are noise of the longest length that the config takes. Text
needs some tokenizer, such as input.tokenizer=runs/text-sample/tokenizer.json.
"""

import argparse
import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from selfdistill.config import RunConfig
from selfdistill.config_files.load import load_config
from selfdistill.masking import row_keys
from selfdistill.modalities.base import load_modality
from selfdistill.objective.data2vec import Data2Vec
from selfdistill.types import Batch

MASKS = (1, 2, 4, 8, 16)


class Peak(TorchDispatchMode):
    """Counts the bytes of all storages that are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.most = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tree_map(self.note, out)
        return out

    def note(self, value: Any) -> None:
        if not isinstance(value, Tensor):
            return
        storage = value.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self.known:
            return
        self.known.add(key)
        self.live += size
        self.most = max(self.most, self.live)
        weakref.finalize(storage, self.forget, key, size)

    def forget(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.live -= size


def batch_of(config: RunConfig, size: int) -> Batch:
    """Noise with masks."""
    rng = np.random.default_rng(0)
    if config.modality == "text":
        examples = rng.integers(5, config.encoder.vocab_size, (size, config.input.max_tokens))
    elif config.modality == "image":
        examples = rng.integers(256, size=(size, 3, *config.input.size), dtype=np.uint8)
    else:
        length = int(config.input.max_seconds * config.input.sampling_rate)
        examples = rng.standard_normal((size, length), dtype=np.float32)
    pipeline = load_modality(config.modality).build_pipeline(config)
    return pipeline.collate(list(examples), row_keys(config.seed, np.arange(size)))


def peak(config: RunConfig, batch_size: int) -> tuple[float, float]:
    """Megabytes after the model is built and at the peak, and the visible share."""
    gc.collect()
    counter = Peak()
    with counter:
        model = Data2Vec(config)
        batch = batch_of(config, batch_size)
        output = model({config.modality: batch})[config.modality]
        (output.loss / output.tokens).backward()
    assert batch.masks is not None
    return counter.most / 2**20, batch.masks.visible.shape[1] / batch.masks.masked.shape[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--batch", type=int, default=2)
    options = parser.parse_intermixed_args()
    rows: dict[str, list[float]] = {}
    for strategy in ("dense", "visible"):
        rows[strategy] = []
        for masks in MASKS:
            changes = [f"strategy={strategy}", f"mask.num_masks={masks}", "run_dir=unused"]
            config = load_config(options.config, [*options.overrides, *changes], load_modality)
            found, share = peak(config, options.batch)
            rows[strategy].append(found)
            print(f"{strategy}, {masks} masks: {found:.0f} MB, {share:.1%} visible", flush=True)
    print(f"\n| masks per sample | {' | '.join(str(n) for n in MASKS)} | for each more |")
    print("|---" * (len(MASKS) + 2) + "|")
    for strategy, found in rows.items():
        slope = (found[-1] - found[-2]) / (MASKS[-1] - MASKS[-2])
        cells = " | ".join(f"{value:,.0f}" for value in found)
        print(f"| {strategy}, MB | {cells} | {slope:,.0f} |")


if __name__ == "__main__":
    main()
