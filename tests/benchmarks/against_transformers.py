"""A training step of ours beside the loop that people write today around transformers' models.

    python tests/benchmarks/against_transformers.py [image audio text] [--rounds 7] [--bf16]

The other loop is ``todays_loop.py``; how they are compared says ``side_by_side.py``. With
--strategy visible the other loop, whose models cannot leave tokens out, reads every masked row in
full, and has no decoder. With --device cuda both have base size, multiply in bf16 and are eager or,
with --compile, compiled. That was not run yet.
"""

import argparse
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from measuring import Action, origin, write_result
from side_by_side import (
    CONFIGS,
    LENGTH,
    MODALITIES,
    SIZE,
    Case,
    compare,
    noise,
    on_cpu,
    table,
)

from selfdistill.config import RunConfig
from selfdistill.types import Batch

FILES = {
    ("image", "dense"): "image/base_imagenet.yaml",
    ("audio", "dense"): "audio/base_librispeech.yaml",
    ("text", "dense"): "text/base.yaml",
    ("image", "visible"): "image/base_visible.yaml",
    ("audio", "visible"): "audio/base_visible.yaml",
    ("text", "visible"): "text/base_visible.yaml",
}
BATCH = {
    "cpu": {"image": 8, "audio": 2, "text": 8},
    "cuda": {"image": 128, "audio": 16, "text": 32},
}
VISIBLE = {
    modality: ("mask.num_masks=4", f"decoder.width={width}")
    for modality, width in {"image": 384, "audio": 192, "text": 384}.items()
}
NO_DROPOUT = (
    "model.dropout=0",
    "model.attention_dropout=0",
    "model.activation_dropout=0",
    "model.drop_path=0",
    "model.layer_drop=0",
)


@dataclass(frozen=True, kw_only=True)
class BesideLoop(Case):
    """
    Attributes:
        words: overrides of the config file that ``FILES`` names.
        attention: of transformers' model, eager or sdpa.
        compiled: whether both are.
    """

    name = "transformers"
    words: tuple[str, ...]
    strategy: str = "dense"
    attention: str = "eager"
    compiled: bool = False

    def build(self) -> tuple[RunConfig, Batch]:
        precision = "bf16" if self.device == "cuda" else "fp32"
        own = (f"train.precision={precision}", f"train.compile={str(self.compiled).lower()}")
        path = CONFIGS / FILES[self.modality, self.strategy]
        return noise(path, (*own, *self.words), self.batch_size)

    def load_code(self) -> None:
        from todays_loop import load_classes

        load_classes()

    def their_step(self, config: RunConfig, batch: Batch) -> Action:
        from todays_loop import TodaysLoop

        return TodaysLoop(config, batch, self.attention, self.device).step


def case_of(modality: str, options: argparse.Namespace) -> BesideLoop:
    """At the size that is compared here."""
    words: tuple[str, ...] = NO_DROPOUT if options.no_dropout else ()
    words += ("train.precision=bf16",) if options.bf16 else ()
    if options.device == "cpu":
        words += (*SIZE, *LENGTH[modality])
        words += VISIBLE[modality] if options.strategy == "visible" else ()
    return BesideLoop(
        modality=modality,
        batch_size=BATCH[options.device][modality],
        words=words,
        strategy=options.strategy,
        attention="sdpa" if options.sdpa else "eager",
        device=options.device,
        compiled=options.compile,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modalities", nargs="*", metavar="image audio text")
    parser.add_argument("--strategy", choices=("dense", "visible"), default="dense")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--no-dropout", action="store_true", help="and no drop path, no layer drop")
    parser.add_argument("--sdpa", action="store_true", help="not eager attention in transformers")
    parser.add_argument("--bf16", action="store_true", help="on a CPU, too, multiply in bf16")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    if find_spec("transformers") is None:
        sys.exit("this needs transformers: pip install 'selfdistill[test]'")
    if unknown := set(options.modalities) - set(MODALITIES):
        parser.error(f"no such modality: {', '.join(sorted(unknown))}")
    if options.device == "cpu":
        on_cpu()
    results = {}
    for modality in options.modalities or MODALITIES:
        results[modality] = compare(case_of(modality, options), options.rounds)
    print(table(results))
    packages = ("torch", "transformers", "accelerate")
    write_result(options.json, {**origin(*packages), "results": results})


if __name__ == "__main__":
    main()
