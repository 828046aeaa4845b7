"""Frozen features of samples: one vector per sample and layer, or one per token and layer."""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
import torch
from torch import Tensor, nn

from selfdistill.data.ledger import Bad, all_bad
from selfdistill.data.pipeline import InputPipeline
from selfdistill.data.plain import Example, Part, Samples, plain_examples
from selfdistill.errors import HealthError
from selfdistill.modalities.backbone import Backbone

UNLABELLED = -1
BASELINE_BATCH = 32


@dataclass(frozen=True)
class Features:
    """Features of a set of samples; arrays may be maps of files.

    Attributes:
        layers: float32 [N, D] per layer; 0 is the input of the blocks, i the output of block i.
            The raw input has one. Of tokens float16 [T1 + T2 + ..., D].
        labels: int64 [N]; ``UNLABELLED`` where a sample has no label.
        numbers: int64 [N], which samples of the set they are of; the others were bad.
        lengths: int64 [N], tokens of each sample; None: one vector per sample.
        groups: int64 [N], rows of one input have one number: they are held out together and drawn
            together; None: every row is of another.
    """

    layers: Sequence[np.ndarray]
    labels: np.ndarray
    numbers: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    lengths: np.ndarray | None = None
    groups: np.ndarray | None = None


@dataclass(frozen=True)
class Share:
    """What one of several processes computes of a set.

    It is made of whole batches, so that what a batch holds does not depend on the processes.

    Attributes:
        process: its number.
        processes: how many there are.
    """

    process: int = 0
    processes: int = 1

    def numbers(self, total: int, size: int) -> np.ndarray:
        """Those of its samples, int64 [n], ascending, in batches of ``size``; there may be none."""
        numbers = np.arange(total)
        return numbers[numbers // size % self.processes == self.process]


ALL = Share()
Collect = Callable[[Callable[[Share], Features]], Features | None]
"""Calls a function with the share of each process; its features together, on the main process."""


def collect_alone(compute: Callable[[Share], Features]) -> Features:
    """Of the only process."""
    return compute(ALL)


@dataclass(frozen=True)
class Rows:
    """What one batch adds to ``Features``, the same arrays."""

    layers: Sequence[np.ndarray]
    labels: Sequence[int]
    numbers: Sequence[int]
    lengths: Sequence[int] | None = None


def gather(batches: Iterable[Rows]) -> Features:
    """All rows, in memory."""
    layers: list[list[np.ndarray]] = []
    labels: list[int] = []
    numbers: list[int] = []
    lengths: list[int] = []
    for rows in batches:
        layers = layers or [[] for _ in rows.layers]
        for collected, layer in zip(layers, rows.layers, strict=True):
            collected.append(layer)
        labels += rows.labels
        numbers += rows.numbers
        lengths += rows.lengths or ()
    return Features(
        [np.concatenate(collected) for collected in layers],
        np.array(labels, dtype=np.int64),
        np.array(numbers, dtype=np.int64),
        np.array(lengths, dtype=np.int64) if lengths else None,
    )


def _tell_nobody(bad: Bad) -> None:
    pass


def encoder_rows(
    backbone: Backbone,
    samples: Samples,
    pipeline: InputPipeline,
    batch_size: int,
    tokens: bool = False,
    whole: bool = False,
    share: Share = ALL,
    skip: Callable[[Bad], object] = _tell_nobody,
) -> Generator[Rows]:
    """Every layer of ``backbone``, batch by batch; bad samples are left out.

    A batch holds the good ones of ``batch_size`` samples in a row.

    While this runs it is in eval mode, without gradients, on its device and in the precision of
    its parameters; afterwards it has its modes back.

    Args:
        tokens: all valid tokens as float16; else their mean per sample, float32.
        whole: leave out the samples that are longer than the pipeline takes, too.
        share: of the samples.
        skip: called with each sample that is left out.

    Raises:
        HealthError: a feature is not finite.
        DataBudgetError: all samples of the share are bad.
    """
    device = next(backbone.parameters()).device
    with _frozen(backbone):
        for chunk in _chunks(samples, pipeline, batch_size, share, skip, whole):
            batch = pipeline.collate([example for _, (_, example, _) in chunk], None)
            batch = batch.to(device)
            states, padding = backbone.hidden_states(batch.inputs, batch.lengths)
            layers, lengths = [], None
            for number, state in enumerate(states):
                x = _valid(state, padding) if tokens else mean_over_valid(state, padding)
                if not x.isfinite().all():
                    raise HealthError(
                        f"probes: the encoder's features at layer {number} are not finite"
                    )
                layers.append((_halved(x) if tokens else x).cpu().numpy())
            if tokens:
                total = states[0].shape[1]
                full = [total] * len(chunk) if padding is None else (~padding).sum(1).tolist()
                lengths = full
            yield Rows(layers, _labels(chunk), [number for number, _ in chunk], lengths)


def baseline_rows(
    samples: Samples,
    pipeline: InputPipeline,
    share: Share = ALL,
    skip: Callable[[Bad], object] = _tell_nobody,
) -> Iterator[Rows]:
    """The pipeline's features of the raw input, as a single layer; see ``encoder_rows``."""
    for chunk in _chunks(samples, pipeline, BASELINE_BATCH, share, skip):
        rows = [pipeline.baseline(example) for _, (_, example, _) in chunk]
        layer = np.stack(rows).astype(np.float32, copy=False)
        yield Rows([layer], _labels(chunk), [number for number, _ in chunk])


def encoder_features(
    backbone: Backbone,
    samples: Samples,
    pipeline: InputPipeline,
    batch_size: int,
    share: Share = ALL,
) -> Features:
    """``encoder_rows`` of means in memory."""
    return gather(encoder_rows(backbone, samples, pipeline, batch_size, share=share))


def baseline_features(samples: Samples, pipeline: InputPipeline, share: Share = ALL) -> Features:
    """``baseline_rows`` in memory."""
    return gather(baseline_rows(samples, pipeline, share))


def mean_over_valid(x: Tensor, padding: Tensor | None) -> Tensor:
    """Mean of x [B, T, D] over the tokens that ``padding`` [B, T] does not name: float32 [B, D]."""
    x = x.float()
    if padding is None:
        return x.mean(dim=1)
    # padded positions may hold anything, NaN included, so they are replaced, not multiplied by 0
    total = x.masked_fill(padding[..., None], 0.0).sum(dim=1)
    return total / (~padding).sum(dim=1, keepdim=True).clamp_min(1)


def _valid(x: Tensor, padding: Tensor | None) -> Tensor:
    """Tokens [T1 + T2 + ..., D] of x [B, T, D] that are no padding."""
    return x.flatten(0, 1) if padding is None else x[~padding]


def _halved(x: Tensor) -> Tensor:
    largest = torch.finfo(torch.float16).max
    return x.clamp(-largest, largest).half()


Numbered = tuple[int, Example]


def _chunks(
    samples: Samples,
    pipeline: InputPipeline,
    size: int,
    share: Share,
    skip: Callable[[Bad], object],
    whole: bool = False,
) -> Iterator[list[Numbered]]:
    """Numbers and examples of the samples that can be used."""
    bad: list[Bad] = []
    cropped: list[str] = []

    def leave_out(found: Bad) -> None:
        bad.append(found)
        skip(found)

    part = Part(samples, share.numbers(len(samples.keys), size))
    examples = plain_examples(part, pipeline, leave_out, cropped.append)

    def numbered() -> Iterator[Numbered]:
        before = 0
        for count, example in enumerate(examples):
            if whole and len(cropped) > before:  # this one: its key may be that of others, too
                skip((example[0], "longer than the model takes", ""))
            else:
                # when an example comes, all before it were yielded or found bad
                yield part.numbers[count + len(bad)], example
            before = len(cropped)

    for _, chunk in groupby(numbered(), lambda entry: entry[0] // size):
        yield list(chunk)
    if bad and len(bad) == len(part.numbers):
        raise all_bad(bad)


def _labels(chunk: Iterable[Numbered]) -> list[int]:
    return [UNLABELLED if label is None else label for _, (_, _, label) in chunk]


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; every sub-module gets its own mode back."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, training in modes:
            part.training = training
