"""Features of files, lines and shards from a pretrained encoder, as a safetensors file.

It has float32 tensors ``layer_i``: [N, D], means over the valid tokens of each input, or with pool
"none" [T1 + T2 + ..., D], the tokens themselves, and ``lengths`` int64 [N], how many each input
has. Layer 0 is the input of the blocks, i the output of block i; prefix tokens are left out. If
every input has a label, there is ``labels`` int64 [N]; where only some have one a warning says so.
Its metadata are strings: ``keys`` (a JSON list of N names), ``model``, ``weights``, ``modality``,
``pool`` and, where it is known, ``step``.
"""

import json
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from selfdistill.data.files import find_inputs, open_inputs
from selfdistill.data.ledger import Bad
from selfdistill.data.pipeline import InputPipeline
from selfdistill.data.plain import Example, Samples, plain_examples
from selfdistill.devices import choose_device
from selfdistill.errors import BadSample, SelfdistillError, UserError
from selfdistill.modalities.backbone import Backbone
from selfdistill.outputs import check_output, say
from selfdistill.pretrained import Weights, load_pretrained
from selfdistill.probes.features import mean_over_valid
from selfdistill.tensor_files import save_tensors
from selfdistill.types import Batch

SUFFIX = ".safetensors"
NAMES_BYTES = 99_000_000
"""Names of the inputs that one file can hold: no header above 100 MB is read again."""

logger = logging.getLogger(__name__)

Pool = Literal["mean", "none"]


@dataclass
class _Features:
    """What has been computed; ``layers`` has the rows [., D] of each batch by layer."""

    layers: dict[int, list[Tensor]]
    keys: list[str] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    labels: list[int | None] = field(default_factory=list)
    skipped: int = 0
    cropped: int = 0

    def crop(self, key: str) -> None:
        self.cropped += 1
        if self.cropped == 1:
            logger.warning("%s is longer than the model takes; its end is left out", key)

    def skip(self, bad: Bad) -> None:
        key, *found = bad
        self.skipped += 1
        logger.warning("%s is skipped: %s", key, BadSample(*found))


def embed(
    model: str,
    inputs: Sequence[str],
    out: Path,
    *,
    layers: str = "last",
    pool: Pool = "mean",
    batch_size: int = 16,
    weights: Weights = "student",
    device: str | None = None,
    modality: str = "",
) -> None:
    """Write the features of all inputs that can be used, in their order.

    Args:
        model: what ``load_pretrained`` takes.
        inputs: what ``find_inputs`` takes. Inputs longer than the model's are cropped.
        out: a new file.
        layers: ``last``, ``all``, or numbers with commas between them.
        batch_size: inputs at a time; the features do not depend on it.
        device: as torch names it; None: a GPU if there is one.
        modality: whose encoder, of a run over several.

    Raises:
        UserError: an argument cannot work, or no input can be used.
        SelfdistillError: ``out`` cannot be written, or a shard changed.
    """
    _check_out(out)
    if batch_size < 1:
        raise UserError(f"--batch-size: {batch_size} must be 1 or more")
    place = choose_device(device)
    paths = find_inputs(inputs)
    pretrained = load_pretrained(model, weights, modality)
    backbone, config = pretrained.backbone, pretrained.config
    numbers = choose_layers(layers, backbone.depth)
    pipeline = pretrained.modality.build_pipeline(config)
    samples = open_inputs(paths, pipeline.extensions)
    _check_names([key for part in samples for key in part.keys])
    batch_size = pretrained.batch_size(batch_size)
    features = _compute(backbone.to(place), pipeline, samples, numbers, pool, batch_size)
    tensors = _tensors(features, pool)
    metadata = {
        "keys": json.dumps(features.keys),
        "model": model,
        "weights": weights,
        "modality": config.modality,
        "pool": pool,
    }
    if pretrained.step is not None:
        metadata["step"] = str(pretrained.step)
    _write(out, tensors, metadata)
    shape = list(tensors[f"layer_{numbers[0]}"].shape)
    named = ", ".join(f"layer_{number}" for number in numbers)
    print(
        f"embedded {len(features.keys)} inputs: {named} of shape {shape} in {out}; "
        f"{features.skipped} skipped, {features.cropped} cropped"
    )


def choose_layers(given: str, depth: int) -> list[int]:
    """The layers that ``--layers`` names, each once, in its order.

    Raises:
        UserError: it names none, or one that a model of ``depth`` blocks does not have.
    """
    if given in ("last", "all"):
        return list(range(depth + 1)) if given == "all" else [depth]
    try:
        chosen = list(dict.fromkeys(int(word) for word in given.split(",")))
    except ValueError as error:
        raise UserError(
            f"--layers: '{given}' is neither last, all, nor numbers such as 0,{depth}"
        ) from error
    for number in chosen:
        if not 0 <= number <= depth:
            raise UserError(f"--layers: there is no layer {number}; this model has 0 to {depth}")
    return chosen


def _check_out(out: Path) -> None:
    check_output(out, "--out", (SUFFIX,))
    if out.exists():
        raise UserError(f"--out: '{out}' exists; remove it or choose another name")


def _check_names(keys: Sequence[str]) -> None:
    # a string inside of JSON: its quotes are escaped once more
    if len(json.dumps(json.dumps(keys))) > NAMES_BYTES:
        raise UserError(
            f"INPUT: the names of {len(keys)} inputs are too long for one {SUFFIX} file; embed "
            "them in several calls"
        )


def _compute(
    backbone: Backbone,
    pipeline: InputPipeline,
    samples: Sequence[Samples],
    numbers: Sequence[int],
    pool: Pool,
    batch_size: int,
) -> _Features:
    features = _Features({number: [] for number in numbers})
    began = time.monotonic()
    total = sum(len(part.keys) for part in samples)
    found = (
        example
        for part in samples
        for example in plain_examples(part, pipeline, features.skip, features.crop)
    )
    with (
        logging_redirect_tqdm(),
        tqdm(total=total, unit=" inputs", disable=None) as bar,
        # TF32 convolutions, a GPU's default, would make a row depend on its batch
        torch.backends.cudnn.flags(enabled=True, allow_tf32=False),
    ):
        has_bar = not bar.disable
        while chunk := list(islice(found, batch_size)):
            batch = pipeline.collate([values for _, values, _ in chunk], None)
            _add(features, chunk, _rows(backbone, batch, numbers, pool))
            bar.update(len(features.keys) + features.skipped - bar.n)
    seconds = time.monotonic() - began
    if not has_bar:
        rate = total / max(seconds, 1e-9)
        say(f"{total} inputs in {seconds:.1f} s, {rate:.1f} inputs/s")
    if not features.keys:
        raise UserError(f"INPUT: none of {total} inputs could be used; the warnings say why")
    return features


def _rows(
    backbone: Backbone, batch: Batch, numbers: Sequence[int], pool: Pool
) -> dict[int, list[Tensor]]:
    """For each layer and input of a batch, float32 [1, D], or [T, D] where nothing is pooled."""
    batch = batch.to(next(backbone.parameters()).device)
    states, padding = backbone.hidden_states(batch.inputs, batch.lengths)
    found = {}
    for number in numbers:
        x = states[number].float()
        if pool == "mean":
            found[number] = list(mean_over_valid(x, padding)[:, None].cpu())
        elif padding is None:
            found[number] = list(x.cpu())
        else:
            found[number] = [row[~out].cpu() for row, out in zip(x, padding, strict=True)]
    return found


def _add(
    features: _Features, chunk: Sequence[Example], rows: Mapping[int, Sequence[Tensor]]
) -> None:
    kept = []
    for place, (key, _, label) in enumerate(chunk):
        broken = [i for i, layer in rows.items() if not layer[place].isfinite().all()]
        if broken:
            features.skip((key, "its features are not finite", f"layer {broken[0]}"))
            continue
        kept.append(place)
        features.keys.append(key)
        features.labels.append(label)
        features.lengths.append(len(next(iter(rows.values()))[place]))
    if kept:
        for number, layer in rows.items():
            features.layers[number].append(torch.cat([layer[place] for place in kept]))


def _tensors(features: _Features, pool: Pool) -> dict[str, Tensor]:
    # batches are given up layer by layer, or all features would be there twice
    found = {f"layer_{i}": torch.cat(features.layers.pop(i)) for i in list(features.layers)}
    if pool == "none":
        found["lengths"] = torch.tensor(features.lengths)
    labels = [label for label in features.labels if label is not None]
    if len(labels) == len(features.labels):
        found["labels"] = torch.tensor(labels)
    elif labels:
        logger.warning(
            "%d of %d inputs have no label (an integer in a .cls member); labels are not written",
            *(len(features.labels) - len(labels), len(features.labels)),
        )
    return found


def _write(out: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    # safetensors writes to a name of its own beside the file, which nobody would find after a kill
    writing = out.with_name(f".{out.name}.writing")
    try:
        shutil.rmtree(writing, ignore_errors=True)
        writing.mkdir()
        save_tensors(writing / out.name, tensors, metadata)
        (writing / out.name).rename(out)
    except OSError as error:
        raise SelfdistillError(f"--out: cannot write '{out}': {error}") from error
    finally:
        shutil.rmtree(writing, ignore_errors=True)
