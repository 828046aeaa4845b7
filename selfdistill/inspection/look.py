"""A random sample of a data set, decoded: what it measures, and what training makes of it."""

from dataclasses import dataclass, field

import numpy as np

from selfdistill.config import RunConfig
from selfdistill.data.ledger import Bad, why_bad
from selfdistill.data.order import out_of_few_shards
from selfdistill.data.pipeline import training_example
from selfdistill.data.plain import label_of
from selfdistill.data.shards import ShardSet
from selfdistill.errors import SelfdistillError
from selfdistill.masking import row_keys
from selfdistill.modalities.base import Modality
from selfdistill.modalities.picture import SamplePicture, Shown
from selfdistill.pictures.examples import masked_in

LOOKED_AT = 512
"""Samples that are decoded."""
SHARDS_LOOKED_AT = 16
COLLATED = 32


@dataclass(frozen=True)
class Subject:
    """One modality's data.

    Attributes:
        name: of the modality.
        config: its part of the run; None: only the shards are known.
        batch_size: its samples in a micro-batch; 0: ``data.batch_length`` counts.
    """

    name: str
    modality: Modality
    picture: SamplePicture
    shards: ShardSet
    config: RunConfig | None = None
    batch_size: int = 0


@dataclass
class Looked:
    """What the decoded samples add up to.

    Attributes:
        count: of all that were tried.
        measures: of the good ones, as ``SamplePicture.measures`` has them, by name.
        labels: of the good ones.
        lengths: of their examples, at the resolution of ``Batch.inputs``.
        masked, visible: positions of the encoder under all masks.
        shown: the samples to be shown.
    """

    count: int = 0
    bad: list[Bad] = field(default_factory=list)
    measures: dict[str, list[float]] = field(default_factory=dict)
    labels: list[int | None] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    masked: int = 0
    visible: int = 0
    shown: list[Shown] = field(default_factory=list)


def look_at(subject: Subject, samples: int, seed: int) -> Looked:
    """Decode a random sample of a data set.

    Args:
        samples: to be shown.
        seed: of all that is drawn.

    Raises:
        SelfdistillError: a shard cannot be read.
    """
    looked = Looked()
    picture, pipeline = subject.picture, subject.picture.pipeline
    waiting: list[np.ndarray] = []
    chosen = out_of_few_shards(subject.shards.sizes, seed, SHARDS_LOOKED_AT, LOOKED_AT)
    for number in chosen.tolist():
        key, members = subject.shards.read(number)
        looked.count += 1
        try:
            value = picture.decode(members)
            measures = picture.measures(value)
            masked = None
            if subject.config is not None and pipeline is not None:
                value = training_example(pipeline, value, seed, number)
                waiting.append(value)
                if len(looked.shown) < samples:
                    masked = masked_in(pipeline, value, seed, number)
        except SelfdistillError:
            raise
        except Exception as error:
            looked.bad.append(why_bad(key, error))
            continue
        for name, measured in measures.items():
            looked.measures.setdefault(name, []).append(measured)
        looked.labels.append(label_of(members))
        if len(looked.shown) < samples:
            looked.shown.append(Shown(key, looked.labels[-1], value, masked))
        if len(waiting) == COLLATED:
            _collate(subject, waiting, seed, looked)
            waiting = []
    if waiting:
        _collate(subject, waiting, seed, looked)
    return looked


def _collate(subject: Subject, examples: list[np.ndarray], seed: int, looked: Looked) -> None:
    pipeline = subject.picture.pipeline
    assert pipeline is not None
    first = len(looked.lengths)
    batch = pipeline.collate(examples, row_keys(seed, np.arange(first, first + len(examples))))
    width = batch.inputs.shape[1]
    looked.lengths += [width] * len(examples) if batch.lengths is None else batch.lengths.tolist()
    if batch.masks is not None:
        looked.masked += int(batch.masks.count())
        looked.visible += batch.masks.count_visible()
