"""A training step of ours beside that of the original implementation of data2vec 2.0.

    git clone https://github.com/facebookresearch/fairseq && git -C fairseq checkout 3d262bb2
    python tests/benchmarks/against_original.py fairseq [image audio text] [--rounds 7]

Both have the sizes of the published base recipes but for the width, the same masks and dropout,
and no layer drop. The original's step is that of its trainer without logging: ``original_step.py``.
That both compute the same loss from the same weights is checked first. How they are compared says
``side_by_side.py``.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
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
from selfdistill.objective.data2vec import Data2Vec
from selfdistill.originals import load_original
from selfdistill.types import Batch

BATCH = {"image": 4, "audio": 2, "text": 8}
WORDS = {
    "image": ("mask.num_masks=8", "decoder.width=384"),
    "audio": ("mask.num_masks=4", "decoder.width=192"),
    "text": ("mask.num_masks=4", "decoder.width=384"),
}
WITHOUT_CHANCE = (
    "model.dropout=0",
    "model.attention_dropout=0",
    "decoder.input_dropout=0",
    "decoder.mask_noise_std=0",
)


@dataclass(frozen=True, kw_only=True)
class BesideOriginal(Case):
    """
    Attributes:
        source: a checkout of fairseq.
    """

    name = "the original"
    source: str

    def build(self, *more: str) -> tuple[RunConfig, Batch]:
        words = (*SIZE, *LENGTH[self.modality], *WORDS[self.modality], "model.layer_drop=0")
        path = CONFIGS / self.modality / "data2vec2_base.yaml"
        return noise(path, (*words, *more), self.batch_size)

    def load_code(self) -> None:
        from original_step import import_original

        import_original(Path(self.source))

    def their_step(self, config: RunConfig, batch: Batch) -> Action:
        from original_step import OriginalStep, import_original

        import_original(Path(self.source))
        return OriginalStep(config, batch).step


def check_same_loss(case: BesideOriginal) -> None:
    """Or times would say nothing of each other.

    Raises:
        AssertionError: the losses differ by more than 1e-5 of them.
    """
    from original_step import OriginalStep

    case.load_code()
    config, batch = case.build(*WITHOUT_CHANCE)
    original, ours = OriginalStep(config, batch), Data2Vec(config)
    load_original(ours, original.model.state_dict())
    with torch.no_grad():
        output = ours({case.modality: batch})[case.modality]
        torch.testing.assert_close(output.loss / output.tokens, original.loss(), rtol=1e-5, atol=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="a checkout of fairseq")
    parser.add_argument("modalities", nargs="*", metavar="image audio text")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    if not (options.source / "examples" / "data2vec").is_dir():
        parser.error(f"{options.source} is no checkout of fairseq")
    if unknown := set(options.modalities) - set(MODALITIES):
        parser.error(f"no such modality: {', '.join(sorted(unknown))}")
    on_cpu()
    results = {}
    for modality in options.modalities or MODALITIES:
        source, size = str(options.source), BATCH[modality]
        case = BesideOriginal(modality=modality, batch_size=size, source=source)
        check_same_loss(case)
        results[modality] = compare(case, options.rounds)
    print(table(results))
    write_result(options.json, {**origin("torch", "accelerate"), "results": results})


if __name__ == "__main__":
    main()
