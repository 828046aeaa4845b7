"""The way of a step from a loader's worker to the main process.

torch passes every tensor through shared memory of its own, whose descriptor is asked for over a
socket: a third of a millisecond each, and a step of text has dozens of small ones. These go through
the queue itself.
"""

import io
import pickle
from contextlib import suppress
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
from torch import Tensor

SMALL = 128 << 10
"""Bytes of a tensor up to which copying it is quicker."""


class Sent:
    """Anything that is pickled to be sent; it arrives as what it was."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __reduce__(self) -> tuple[Any, ...]:
        written = io.BytesIO()
        _Pickler(written, pickle.HIGHEST_PROTOCOL).dump(self.value)
        return pickle.loads, (written.getvalue(),)


class _Pickler(ForkingPickler):
    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, Tensor) and value.nbytes <= SMALL:
            with suppress(TypeError):  # numpy has no such type
                return torch.from_numpy, (value.numpy(),)
        return NotImplemented  # as torch does it
