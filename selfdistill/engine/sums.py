"""What the processes of a run have to tell each other in every step."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from selfdistill.data.ledger import Loaded, MicroBatch
from selfdistill.types import Masks


def over_processes(values: list[float], accelerator: Accelerator) -> list[float]:
    """Their sums over all processes, in one exchange."""
    if accelerator.num_processes == 1:
        return values
    tensor = torch.tensor(values, dtype=torch.float64, device=accelerator.device)
    summed: Tensor = accelerator.reduce(tensor, reduction="sum")
    return summed.tolist()


def summed(numbers: Tensor, accelerator: Accelerator) -> Tensor:
    """The same of numbers on the device; the host does not wait for them."""
    if accelerator.num_processes == 1:
        return numbers
    found: Tensor = accelerator.reduce(numbers, reduction="sum")
    return found


def masked_tokens(
    micro_batches: Sequence[MicroBatch], names: Iterable[str], accelerator: Accelerator
) -> Tensor:
    """Of each of the n modalities in a step over all processes: float64 [n] on the device."""
    counts = [
        sum(np.count_nonzero(_masks(loaded[name]).weight.numpy()) for loaded in micro_batches)
        for name in names
    ]
    own = torch.tensor(counts, dtype=torch.float64)
    return summed(own.to(accelerator.device, non_blocking=True), accelerator)


def _masks(loaded: Loaded) -> Masks:
    assert loaded.batch.masks is not None, "training batches carry masks"
    return loaded.batch.masks
