"""Attention by the fastest kernel there is.

On a CPU torch has no fused kernel with dropout, nor for a bias that is learned: there it would
write down the logits of all rows, their softmax, and what dropout makes of it, and keep most of
that for the backward pass. ``tiled_attention`` takes that kernel's place. It goes over the logits
in tiles that a cache has room for, and computes each tile once more in the backward pass, as
FlashAttention does (arXiv 2205.14135, section 3.1); a tile here has all keys of its queries.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from selfdistill.models.dropout import keep_chance, kept

aten = torch.ops.aten

TILE_BYTES = 2**20
"""Of logits: what a core's second-level cache holds."""

LEAST = torch.finfo(torch.float16).min
"""For logits that must not count. Finite in every precision that attention may run in: the softmax
of a row of padding alone is then not nan."""

Tile = tuple[slice, slice]
"""Rows of the batch, and heads."""


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """softmax(q k' / sqrt(d) + mask) v, [B, H, T, d].

    Args:
        q, k, v: [B, H, T, d].
        mask: added to (float) or selecting in (bool, True = attend) the logits; broadcasts to
            [B, H, T, T].
        dropout: chance of a weight to be left out.
    """
    if k.requires_grad and k.element_size() < 4:
        k = _centred(k, mask)
    if _unfused(q, mask, dropout):
        # every tile would copy what is not contiguous, in each of the products it is in
        q, k, v = (x.contiguous() for x in (q, k, v))
        out: Tensor = tiled_attention(q, k, v, mask, dropout)[0]
        return out
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)


def _centred(k: Tensor, mask: Tensor | None) -> Tensor:
    """Keys without their mean over the tokens that are no padding.

    It moves all logits of a query alike, so that softmax does not see it. The gradient of a query's
    logits adds up to 0, times the mean, too; but rounded in half precision it does not, and where
    tokens are much alike, as they are early in training, what is left is a multiple of the query's
    true gradient, whichever kernel is taken.

    Source: SageAttention (arXiv 2410.02367), there for the logits of keys in 8 bits.
    """
    fixed = k.detach()
    if mask is None:
        return k - fixed.mean(2, keepdim=True)
    # padding is the same to all heads and queries
    counts = mask[:, :1, :1] if mask.dtype == torch.bool else mask[:, :1, :1] > LEAST
    share = counts / counts.sum(-1, keepdim=True).clamp(min=1)
    return k - share.to(k.dtype) @ fixed


def _unfused(q: Tensor, mask: Tensor | None, dropout: float) -> bool:
    """Whether torch would write down all logits, and these would be more than a tile."""
    learned = mask is not None and mask.requires_grad
    missing = q.device.type == "cpu" and (dropout > 0 or learned)
    return missing and q.shape[:3].numel() * q.shape[2] * q.element_size() > TILE_BYTES


@torch.library.custom_op(
    "selfdistill::tiled_attention",
    mutates_args=(),
    device_types="cpu",
    tags=(torch.Tag.nondeterministic_seeded,),
)
def tiled_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float
) -> tuple[Tensor, Tensor]:
    """``attend`` tile by tile.

    Logits and weights are of the dtype of q, k and v, but softmax adds up in float32.

    Returns:
        The output, and what dropout kept: int8 [B, H, T, T], or empty without dropout.
    """
    out, keeps, (room,) = _like(q), _keeps(q, dropout), _rooms(q, 1)
    for tile in _tiles(q):
        weights = _softmax(q[tile], k[tile], mask, tile, room)
        if dropout:
            weights *= keeps[tile].copy_(kept(weights.shape, dropout))
        _multiply(weights, v[tile], out[tile], 1 / keep_chance(dropout))
    return out, keeps


@torch.library.custom_op(
    "selfdistill::tiled_attention_backward", mutates_args=(), device_types="cpu"
)
def tiled_attention_backward(
    of_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    keeps: Tensor,
    dropout: float,
    learned: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, and of a mask that is learned (otherwise empty).

    Source: arXiv 2205.14135, appendix B.2.
    """
    of_q, of_k, of_v, of_mask = _gradients(q, mask, learned)
    of_out, (room, more_room) = of_out.contiguous(), _rooms(q, 2)
    scale, larger = q.shape[-1] ** -0.5, 1 / keep_chance(dropout)
    for tile in _tiles(q):
        weights = _softmax(q[tile], k[tile], mask, tile, room)
        of_logits = _multiply(of_out[tile], v[tile].mT, _start(more_room, weights.shape), larger)
        if dropout:
            of_logits *= keeps[tile]
        aten._softmax_backward_data(of_logits, weights, -1, q.dtype, grad_input=of_logits)
        if dropout:
            weights *= keeps[tile]
        _multiply(weights.mT, of_out[tile], of_v[tile], larger)
        _multiply(of_logits, k[tile], of_q[tile], scale)
        _multiply(of_logits.mT, q[tile], of_k[tile], scale)
        if learned:
            _add_up(of_logits, _part(of_mask, tile))
    return of_q, of_k, of_v, of_mask


@tiled_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Sequence[Tensor]:
    return _like(q), _keeps(q, dropout)


@tiled_attention_backward.register_fake
def _(
    of_out: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *rest: Any
) -> Sequence[Tensor]:
    return _gradients(q, mask, rest[-1])


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.dropout = inputs
    ctx.save_for_backward(*tensors, output[1])
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, of_out: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    learned = ctx.needs_input_grad[3]
    *gradients, of_mask = tiled_attention_backward(of_out, *ctx.saved_tensors, ctx.dropout, learned)
    return *gradients, of_mask if learned else None, None


tiled_attention.register_autograd(_backward, setup_context=_remember)


def _softmax(q: Tensor, k: Tensor, mask: Tensor | None, tile: Tile, room: Tensor) -> Tensor:
    """Of a tile's logits [b, h, T, T], written into ``room``."""
    logits, scale = _start(room, torch.Size((*q.shape[:3], k.shape[2]))), q.shape[-1] ** -0.5
    part = None if mask is None else _part(mask, tile)
    if part is None or part.dtype == torch.bool:
        _multiply(q, k.mT, logits, scale)
        if part is not None:
            logits.masked_fill_(~part, LEAST)
    else:
        _multiply(q, k.mT, logits.copy_(part), scale, add=True)
    return torch.softmax(logits, -1, out=logits)


def _multiply(
    left: Tensor, right: Tensor, out: Tensor, scale: float = 1.0, add: bool = False
) -> Tensor:
    """Products of the matrices in the last two axes, times a factor, written into ``out`` or added
    to it."""
    flat = out.view(-1, *out.shape[2:])
    left, right = left.flatten(0, 1), right.flatten(0, 1)
    torch.baddbmm(flat, left, right, beta=float(add), alpha=scale, out=flat)
    return out


def _add_up(x: Tensor, out: Tensor) -> None:
    """Add to ``out``, summed over the axes along which it has one element."""
    axes = [axis for axis, size in enumerate(out.shape) if size == 1 < x.shape[axis]]
    out += x.sum(axes, keepdim=True, dtype=out.dtype) if axes else x


def _tiles(q: Tensor) -> Iterator[Tile]:
    """Whole rows, or where not even one is small enough, heads of a row."""
    rows, heads = q.shape[:2]
    if (together := _heads_together(q) // heads) > 0:
        for row in range(0, rows, together):
            yield slice(row, row + together), slice(None)
        return
    for row in range(rows):
        for head in range(0, heads, _heads_together(q)):
            yield slice(row, row + 1), slice(head, head + _heads_together(q))


def _heads_together(q: Tensor) -> int:
    """Of one row or of several, whose logits are not larger than a tile; but one at least."""
    return max(TILE_BYTES // (q.shape[2] ** 2 * q.element_size()), 1)


def _rooms(q: Tensor, number: int) -> Tensor:
    """For the logits of the largest tile, so often."""
    rows, heads, tokens, _ = q.shape
    return q.new_empty(number, min(_heads_together(q), rows * heads) * tokens * tokens)


def _start(room: Tensor, shape: torch.Size) -> Tensor:
    return room[: math.prod(shape)].view(shape)


def _part(mask: Tensor, tile: Tile) -> Tensor:
    """What a mask that broadcasts to all logits has of a tile."""
    rows, heads = (
        part if size > 1 else slice(None) for part, size in zip(tile, mask.shape[:2], strict=True)
    )
    return mask[rows, heads]


def _like(q: Tensor) -> Tensor:
    return q.new_empty(q.shape)


def _keeps(q: Tensor, dropout: float) -> Tensor:
    shape = (*q.shape[:3], q.shape[2]) if dropout else (0,)
    return q.new_empty(shape, dtype=torch.int8)


def _gradients(
    q: Tensor, mask: Tensor | None, learned: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    of_mask = torch.zeros_like(mask) if learned and mask is not None else q.new_empty(0)
    return _like(q), _like(q), _like(q), of_mask
