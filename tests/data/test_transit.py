"""What a worker sends arrives as it was, small tensors without shared memory."""

import pickle
from multiprocessing import get_context
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import pytest
import torch
from torch.multiprocessing import reductions

from selfdistill.data.ledger import Loaded
from selfdistill.data.transit import SMALL, Sent
from selfdistill.types import Batch, Masks

TENSORS = [
    torch.arange(6).reshape(2, 3),
    torch.tensor([[True, False]]),
    torch.tensor(0.5),
    torch.zeros(0, 4),
    torch.arange(12.0).reshape(3, 4).T,
    torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    torch.arange(SMALL // 4 + 1, dtype=torch.int32),
]


def step() -> list[dict[str, Loaded]]:
    masks = Masks.from_bool(np.eye(4, dtype=bool))
    batch = Batch(torch.rand(4, 3, 224, 224), torch.arange(4), masks, keys=["a", "b", "c", "d"])
    return [{"some": Loaded(batch, [("k", "short", "1 s")], 5, retries=2)}]


def tensors(found: Loaded) -> list[torch.Tensor | None]:
    batch, masks = found.batch, found.batch.masks
    assert masks is not None
    return [batch.inputs, batch.lengths, masks.masked, masks.index, masks.weight, masks.visible]


def test_a_step_arrives_whole() -> None:
    made = step()
    ((_, sent),) = made[0].items()
    ((_, found),) = pickle.loads(ForkingPickler.dumps(Sent(made)))[0].items()
    assert (found.bad, found.seen, found.retries) == (sent.bad, sent.seen, sent.retries)
    assert found.batch.keys == sent.batch.keys
    assert found.batch.teacher_inputs is None
    for ours, theirs in zip(tensors(found), tensors(sent), strict=True):
        assert ours is not None
        assert theirs is not None
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("tensor", TENSORS, ids=lambda t: f"{t.dtype}-{tuple(t.shape)}")
def test_tensors_of_every_kind(tensor: torch.Tensor) -> None:
    found = pickle.loads(ForkingPickler.dumps(Sent(tensor)))
    assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
    assert torch.equal(found, tensor)
    if found.numel():
        before = tensor.clone()
        found.fill_(1)  # it is the receiver's own
        assert tensor.is_shared() or torch.equal(tensor, before)


def test_only_large_ones_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    shared: list[Any] = []
    reduce = reductions.reduce_storage

    def noted(storage: Any) -> Any:
        shared.append(storage.nbytes())
        return reduce(storage)

    monkeypatch.setitem(ForkingPickler._extra_reducers, torch.UntypedStorage, noted)
    (large,) = step()[0].values()
    pickle.loads(ForkingPickler.dumps(Sent([{"some": large}])))
    assert shared == [large.batch.inputs.nbytes]


def _send(queue: Any, value: Any) -> None:
    queue.put(Sent(value))


def test_between_processes() -> None:
    context = get_context("fork")
    queue = context.Queue()
    process = context.Process(target=_send, args=(queue, [torch.arange(5), "x"]))
    process.start()
    found = queue.get(timeout=20)
    process.join(20)
    assert found[0].tolist() == [0, 1, 2, 3, 4]
    assert found[1] == "x"
