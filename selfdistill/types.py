"""The few things that travel between the parts of the package.

Shapes use one legend everywhere: B batch, L length of the raw input, T tokens, N masked tokens
(padded to the largest count of the batch), D width, H attention heads, K averaged layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor


def _moved(value: Any, device: torch.device) -> Any:
    return value.to(device, non_blocking=True) if isinstance(value, Tensor | Masks) else value


@dataclass(frozen=True)
class Masks:
    """Which tokens the student does not see.

    The positions are kept as indices beside the boolean map, because a boolean index would make
    the host wait for the device and change shape from batch to batch.

    Attributes:
        masked: bool [B, T], True where masked.
        index: int64 [B, N], the masked positions of each row in ascending order; rows with fewer
            than N repeat position 0.
        weight: float32 [B, N], 1 for a real entry of ``index``, 0 for a filled-up one.
    """

    masked: Tensor
    index: Tensor
    weight: Tensor

    @classmethod
    def from_bool(cls, masked: np.ndarray | Tensor) -> Self:
        """Build from a bool map [B, T]."""
        masked = torch.as_tensor(masked, dtype=torch.bool)
        counts = masked.sum(dim=1)  # [B]
        most = int(counts.max()) if len(counts) else 0
        # a stable sort by "not masked" brings the masked positions to the front, in order
        index = torch.sort((~masked).to(torch.int8), dim=1, stable=True).indices[:, :most]
        weight = (torch.arange(most, device=masked.device)[None] < counts[:, None]).float()
        return cls(masked, index * weight.long(), weight)

    def gather(self, x: Tensor) -> Tensor:
        """Rows of x [B, T, D] at the masked positions: [B, N, D]."""
        return x.gather(1, self.index[..., None].expand(-1, -1, x.shape[-1]))

    def count(self) -> Tensor:
        """Number of masked tokens in the batch, float32 scalar."""
        return self.weight.sum()

    def to(self, device: torch.device, non_blocking: bool = True) -> "Masks":
        return Masks(
            *(getattr(self, f.name).to(device, non_blocking=non_blocking) for f in fields(self))
        )


@dataclass(frozen=True)
class Batch:
    """What the loader hands to the model.

    Attributes:
        inputs: audio float32 [B, L]; image float32 [B, 3, height, width]; text int64 [B, T].
        lengths: int64 [B], valid length of each row at the resolution of ``inputs``; None when
            rows have no padding by nature (images).
        masks: at token resolution; None when features are only read out.
        teacher_inputs: what the teacher sees where that differs from ``inputs``; None: the same.
        keys: the samples' names in their shards.
    """

    inputs: Tensor
    lengths: Tensor | None = None
    masks: Masks | None = None
    teacher_inputs: Tensor | None = None
    keys: Sequence[str] = ()

    def to(self, device: torch.device) -> "Batch":
        return replace(
            self, **{f.name: _moved(getattr(self, f.name), device) for f in fields(self)}
        )


@dataclass(frozen=True)
class Tokens:
    """A sequence of vectors with its padding.

    Attributes:
        x: float [B, T, D].
        padding: bool [B, T], True at padded positions; None: no padding.
    """

    x: Tensor
    padding: Tensor | None = None
