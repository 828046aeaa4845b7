"""Masks against plain loops."""

import pytest
import torch
from torch import Tensor

from selfdistill.types import Batch, Masks, Tokens

B, T, D = 3, 6, 2
LENGTHS = [6, 4, 2]
MASKED = {
    1: [[1, 4], [0, 1, 3], [1]],
    3: [[1, 4], [0], [2, 3, 4, 5], [0, 1, 3], [2], [1, 2], [0], [1], [1]],
}
"""By the number of masks: the masked places of each row; rows see 1 to 5 tokens."""


def masked_map(rows: list[list[int]]) -> Tensor:
    masked = torch.zeros(len(rows), T, dtype=torch.bool)
    for row, places in zip(masked, rows, strict=True):
        row[places] = True
    return masked


def valid_map(num_masks: int) -> Tensor:
    return (torch.arange(T) < torch.tensor(LENGTHS)[:, None]).repeat_interleave(num_masks, dim=0)


def padded(num_masks: int) -> Masks:
    return Masks.from_bool(masked_map(MASKED[num_masks]), valid_map(num_masks))


def seen(num_masks: int) -> list[list[int]]:
    """The places that are neither masked nor padding."""
    rows = MASKED[num_masks]
    return [
        [t for t in range(LENGTHS[i // num_masks]) if t not in row] for i, row in enumerate(rows)
    ]


def vectors(rows: int = B, seed: int = 0) -> Tensor:
    return torch.randn(rows, T, D, generator=torch.Generator().manual_seed(seed))


many = pytest.mark.parametrize("num_masks", MASKED)


@many
def test_indices_come_in_order_and_shorter_rows_are_filled_up(num_masks: int) -> None:
    masks, visible = padded(num_masks), seen(num_masks)
    assert masks.filler is not None
    for found, real, expected in (
        (masks.index, masks.weight.bool(), MASKED[num_masks]),
        (masks.visible, ~masks.filler, visible),
    ):
        width = max(map(len, expected))
        assert found.tolist() == [places + [0] * (width - len(places)) for places in expected]
        assert real.sum(1).tolist() == list(map(len, expected))
        assert all(row.tolist() == sorted(row.tolist(), reverse=True) for row in real)
    assert masks.weight.dtype == torch.float32
    assert masks.index.dtype == masks.visible.dtype == torch.int64
    assert float(masks.count()) == sum(map(len, MASKED[num_masks]))


@many
def test_masked_places_are_gathered_from_samples_or_rows(num_masks: int) -> None:
    masks, x = padded(num_masks), vectors()
    repeated = masks.repeat(x)
    assert torch.equal(repeated, torch.stack([x[i // num_masks] for i in range(B * num_masks)]))
    found = masks.gather(x)
    assert torch.equal(masks.gather(repeated), found)
    for i, places in enumerate(MASKED[num_masks]):
        assert torch.equal(found[i, : len(places)], x[i // num_masks, places])
    other = vectors(B * num_masks, seed=1)
    for i, places in enumerate(MASKED[num_masks]):
        assert torch.equal(masks.gather(other)[i, : len(places)], other[i, places])


@many
def test_filling_puts_the_vector_at_each_rows_masked_places(num_masks: int) -> None:
    masks, x, vector = padded(num_masks), vectors(), torch.tensor([7.0, 8.0])
    for value in (vector, vector[None, None], torch.zeros(())):
        found = masks.fill(x, value)
        assert found.shape == (B * num_masks, T, D)
        for i, places in enumerate(MASKED[num_masks]):
            for t in range(T):
                expected = value.expand(1, 1, D)[0, 0] if t in places else x[i // num_masks, t]
                assert torch.equal(found[i, t], expected)


@many
def test_keeping_takes_the_visible_tokens_with_their_places(num_masks: int) -> None:
    masks = padded(num_masks)
    padding = ~valid_map(1)
    for x, of_row in ((vectors(), num_masks), (vectors(B * num_masks), 1)):
        for given in (None, padding.repeat_interleave(num_masks // of_row, dim=0)):
            kept = masks.keep(Tokens(x, given))
            assert torch.equal(kept.places, masks.visible)
            assert torch.equal(kept.padding, masks.filler)
            for i, places in enumerate(seen(num_masks)):
                assert torch.equal(kept.x[i, : len(places)], x[i // of_row, places])


def test_padding_that_the_masks_do_not_know_is_kept_as_padding() -> None:
    masks = Masks.from_bool(masked_map(MASKED[1]))
    assert masks.filler is not None
    kept = masks.keep(Tokens(vectors(), ~valid_map(1)))
    assert kept.padding is not None
    for row, places in enumerate(seen(1)):
        assert masks.visible[row, ~kept.padding[row]].tolist() == places


@many
def test_restoring_puts_back_what_was_kept_and_nothing_else(num_masks: int) -> None:
    masks, x = padded(num_masks), vectors()
    rest = vectors(B * num_masks, seed=1)
    kept = masks.keep(Tokens(x)).x
    found = masks.restore(kept, rest)
    assert found.shape == rest.shape
    for i, places in enumerate(seen(num_masks)):
        for t in range(T):
            expected = x[i // num_masks, t] if t in places else rest[i, t]
            assert torch.equal(found[i, t], expected), (i, t)


def test_restoring_leaves_gradients_to_what_was_kept() -> None:
    masks = padded(3)
    x = vectors().requires_grad_()
    masks.restore(masks.keep(Tokens(x)).x, torch.zeros(9, T, D)).sum().backward()
    assert x.grad is not None
    times = torch.zeros(B, T)
    for i, places in enumerate(seen(3)):
        times[i // 3, places] += 1
    assert torch.equal(x.grad, times[..., None].expand(B, T, D))


def test_restoring_takes_half_precision_into_the_rest_s() -> None:
    masks = padded(1)
    found = masks.restore(masks.keep(Tokens(vectors().half())).x, vectors(seed=1))
    assert found.dtype == torch.float32


def test_equal_counts_need_no_filling_up() -> None:
    masked = masked_map([[0, 2], [4, 5]])
    masks = Masks.from_bool(masked.numpy())
    assert masks.filler is None
    assert masks.weight.all()
    kept = masks.keep(Tokens(vectors(2)))
    assert kept.padding is None
    assert kept.places is not None
    assert kept.places.tolist() == [[1, 3, 4, 5], [0, 1, 2, 3]]
    restored = masks.restore(kept.x, torch.zeros(2, T, D))
    assert torch.equal(restored, vectors(2).masked_fill(masked[..., None], 0.0))


def test_no_masks_at_all() -> None:
    masks = Masks.from_bool(torch.zeros(2, T, dtype=torch.bool))
    assert masks.index.shape == masks.weight.shape == (2, 0)
    assert masks.gather(vectors(2)).shape == (2, 0, D)
    assert float(masks.count()) == 0


def test_a_batch_moves_with_its_masks() -> None:
    batch = Batch(vectors(), torch.tensor(LENGTHS), padded(3), keys=("a", "b", "c"))
    moved = batch.to(torch.device("meta"))
    assert moved.masks is not None
    assert moved.lengths is not None
    assert moved.inputs.is_meta
    assert moved.lengths.is_meta
    tensors = (getattr(moved.masks, n) for n in ("masked", "index", "weight", "visible", "filler"))
    assert all(tensor.is_meta for tensor in tensors)
    assert moved.keys == ("a", "b", "c")
    assert batch.to(torch.device("cpu")).masks is not None
    equal = Batch(vectors(), masks=Masks.from_bool(torch.eye(3, dtype=torch.bool)))
    moved = equal.to(torch.device("meta"))
    assert moved.masks is not None
    assert moved.masks.filler is None


def test_a_row_without_masked_tokens_weighs_nothing() -> None:
    masked = torch.tensor([[0, 1, 0, 1], [0, 0, 1, 0], [0, 0, 0, 0]]).bool()
    masks = Masks.from_bool(masked)
    assert masks.index.tolist() == [[1, 3], [2, 0], [0, 0]]
    assert masks.weight.tolist() == [[1, 1], [1, 0], [0, 0]]
    x = torch.arange(12.0).view(3, 4, 1)
    assert torch.equal(masks.gather(x)[masks.weight.bool()], x[masked])
    assert float(masks.count()) == 3
