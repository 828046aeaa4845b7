"""The few things that travel between the parts of the package.

Shapes use one legend everywhere: B batch, M masks per sample, R = B * M, L length of the raw input,
T tokens, N masked tokens and V visible ones (padded to the largest count of the batch), D width,
H attention heads, K averaged layers, P tokens in front that are no part of the input.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Masks:
    """Which tokens the student sees, for each of the M masks of each of B samples.

    There are R = B * M rows; rows i * M to i * M + M - 1 are masks of sample i. Positions are kept
    as indices beside the boolean map, because a boolean index would make the host wait for the
    device and change shape from batch to batch. Rows with fewer entries than the longest repeat
    position 0.

    Attributes:
        masked: bool [R, T], True where masked.
        index: int64 [R, N], the masked positions of each row in ascending order.
        weight: float32 [R, N], 1 for a real entry of ``index``, 0 for a filled-up one.
        visible: int64 [R, V], the positions that are neither masked nor padding, ascending.
        filler: bool [R, V], True for a filled-up entry of ``visible``; None: there is none.
    """

    masked: Tensor
    index: Tensor
    weight: Tensor
    visible: Tensor
    filler: Tensor | None

    @classmethod
    def from_bool(
        cls, masked: np.ndarray | Tensor, valid: np.ndarray | Tensor | None = None
    ) -> Self:
        """Build from a bool map [R, T].

        Args:
            masked: True where masked.
            valid: bool [R, T], False at padding, which is never visible; None: no padding.
        """
        masked = torch.as_tensor(masked, dtype=torch.bool)
        shown = ~masked if valid is None else ~masked & torch.as_tensor(valid, dtype=torch.bool)
        index, real = _positions(masked)
        visible, seen = _positions(shown)
        return cls(masked, index, real.float(), visible, None if seen.all() else ~seen)

    def gather(self, x: Tensor) -> Tensor:
        """x [B, T, D] or [R, T, D] at the masked positions: [R, N, D]."""
        return take(x, self.index)

    def fill(self, x: Tensor, value: Tensor) -> Tensor:
        """x [B, T, D] with ``value`` (broadcasts to [D]) at the masked positions: [R, T, D]."""
        masked = self.masked.unflatten(0, (len(x), -1))  # [B, M, T]
        return torch.where(masked[..., None], value, x[:, None]).flatten(0, 1)

    def repeat(self, x: Tensor) -> Tensor:
        """Each row of x [B, ...] once per mask: [R, ...]."""
        return x.repeat_interleave(len(self.masked) // len(x), dim=0)

    def keep(self, tokens: "Tokens") -> "Tokens":
        """``tokens`` of B or R rows at the visible positions: R rows, with their places."""
        padding = self.filler
        if tokens.padding is not None:
            kept = take(tokens.padding[..., None], self.visible)[..., 0]
            padding = kept if padding is None else kept | padding
        return Tokens(take(tokens.x, self.visible), padding, self.visible)

    def restore(self, x: Tensor, rest: Tensor) -> Tensor:
        """Put x [R, V, D] back to where it was visible, ``rest`` [R, T, D] elsewhere."""
        length = self.masked.shape[1]
        places = (
            self.visible if self.filler is None else self.visible.masked_fill(self.filler, length)
        )
        room = F.pad(rest, (0, 0, 0, 1))  # what only fills up goes behind the end
        return room.scatter(1, places[..., None].expand_as(x), x.to(room.dtype))[:, :length]

    def count(self) -> Tensor:
        """Number of masked tokens in the batch, float32 scalar."""
        return self.weight.sum()

    def count_visible(self) -> int:
        """Number of visible tokens in the batch; the host waits for it."""
        filler = 0 if self.filler is None else int(self.filler.sum())
        return self.visible.numel() - filler


def _positions(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Where bool [R, T] is True: int64 [R, N] in ascending order, and bool [R, N], False for what
    only fills up."""
    counts = chosen.sum(dim=1)  # [R]
    most = int(counts.max()) if len(counts) else 0
    real = torch.arange(most, device=chosen.device)[None] < counts[:, None]
    places = torch.arange(chosen.shape[1], device=chosen.device).expand_as(chosen)[chosen]
    index = torch.zeros(real.shape, dtype=torch.int64, device=chosen.device)
    return index.masked_scatter_(real, places), real


def take(x: Tensor, index: Tensor) -> Tensor:
    """x [B, T, D] at index [B * M, N]: [B * M, N, D], without a copy of x per mask."""
    batch, length = x.shape[:2]
    first = torch.arange(0, batch * length, length, device=x.device)
    first = first.repeat_interleave(len(index) // batch)
    # whole vectors of a flat x are several times as fast to take as by ``gather``
    taken = x.flatten(0, 1).index_select(0, (index + first[:, None]).flatten())
    return taken.unflatten(0, index.shape)


def after_prefix(places: Tensor, prefix: int) -> Tensor:
    """Places int64 [R, N] of a sequence without prefix tokens to [R, P + N] of one with them, these
    in front."""
    moved = F.pad(places + prefix, (prefix, 0))
    moved[:, :prefix] = torch.arange(prefix, device=places.device)
    return moved


@dataclass(frozen=True)
class Batch:
    """What the loader hands to the model.

    Attributes:
        inputs: [B, ...] as the modality's feature encoder takes them, such as audio float32 [B, L],
            images uint8 [B, 3, height, width], text int64 [B, T].
        lengths: int64 [B], how many of each row along the second axis of ``inputs`` are valid; None
            where none is padded.
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
        """On a device; from pinned memory the host does not wait for it."""
        moved: Batch = _with_tensors(self, lambda x: x.to(device, non_blocking=True))
        return moved

    def pin_memory(self) -> "Batch":
        """In memory from which a GPU copies by itself."""
        pinned: Batch = _with_tensors(self, Tensor.pin_memory)
        return pinned


def _with_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A tensor changed, or all tensors of a batch or of masks; anything else stays as it is."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Batch | Masks):
        parts = {f.name: _with_tensors(getattr(value, f.name), change) for f in fields(value)}
        return replace(value, **parts)
    return value


@dataclass(frozen=True)
class Tokens:
    """A sequence of vectors with its padding.

    Attributes:
        x: float [B, T, D].
        padding: bool [B, T], True at padded positions; None: no padding.
        places: int64 [B, T], where in the input each token is; None: all are there, in order.
    """

    x: Tensor
    padding: Tensor | None = None
    places: Tensor | None = None
