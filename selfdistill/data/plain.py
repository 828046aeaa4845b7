"""Samples in their order, without chance and without masks: for the probes and for features."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Protocol

import numpy as np

from selfdistill.data.ledger import Bad, why_bad
from selfdistill.data.pipeline import InputPipeline
from selfdistill.data.tarindex import LABEL
from selfdistill.errors import SelfdistillError

Example = tuple[str, np.ndarray, int | None]
"""Key, what the pipeline made of the sample, label (None: no ``cls`` member, or no int64)."""


class Samples(Protocol):
    """Samples by number; ``ShardSet`` is one."""

    @property
    def keys(self) -> list[str]:
        """The names of all samples, in order."""

    def read(self, i: int) -> tuple[str, dict[str, bytes]]:
        """Key and members {extension: bytes} of sample ``i``."""


class Part:
    """Some of the samples of a set.

    Args:
        samples: the set.
        numbers: int64 [n], which ones.
    """

    def __init__(self, samples: Samples, numbers: np.ndarray) -> None:
        self._samples = samples
        self.numbers: list[int] = numbers.tolist()
        keys = samples.keys
        self.keys = [keys[i] for i in self.numbers]

    def read(self, i: int) -> tuple[str, dict[str, bytes]]:
        return self._samples.read(self.numbers[i])


def plain_examples(
    samples: Samples,
    pipeline: InputPipeline,
    skip: Callable[[Bad], object],
    crop: Callable[[str], object] | None = None,
) -> Iterator[Example]:
    """The samples that can be used.

    Args:
        skip: called with each of the others.
        crop: called with the key of each that is longer than the pipeline takes.

    Raises:
        SelfdistillError: a shard changed.
    """
    for i, key in enumerate(samples.keys):
        try:
            _, members = samples.read(i)
            raw = pipeline.decode(members)
            example = pipeline.plain(raw)
            if crop is not None and pipeline.is_cropped(raw):
                crop(key)
        except SelfdistillError:
            raise
        except Exception as error:
            skip(why_bad(key, error))
        else:
            yield key, example, label_of(members)


def label_of(members: Mapping[str, bytes]) -> int | None:
    """The class of a sample; None: no ``cls`` member, or no int64."""
    with suppress(KeyError, ValueError, OverflowError):
        return int(np.int64(class_number(members[LABEL].decode("ascii"))))
    return None


def class_number(written: str) -> int:
    """An integer of digits; raises ``ValueError`` for 1_0, a name that ``int`` takes for 10."""
    if "_" in written:
        raise ValueError(f"'{written}' is no integer")
    return int(written)
