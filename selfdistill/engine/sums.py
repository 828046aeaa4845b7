"""What the processes of a run have to tell each other in every step."""

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from torch import Tensor

from selfdistill.data.ledger import MicroBatch


def over_processes(values: list[float], accelerator: Accelerator) -> list[float]:
    """Their sums over all processes, in one exchange."""
    if accelerator.num_processes == 1:
        return values
    tensor = torch.tensor(values, dtype=torch.float64, device=accelerator.device)
    summed: Tensor = accelerator.reduce(tensor, reduction="sum")
    return summed.tolist()


def masked_tokens(
    micro_batches: Sequence[MicroBatch], accelerator: Accelerator
) -> dict[str, float]:
    """Of each modality in a step over all processes.

    They are counted on the host, which then need not wait for the device.
    """
    counts: dict[str, float] = {}
    for loaded in micro_batches:
        for name, part in loaded.items():
            assert part.batch.masks is not None, "training batches carry masks"
            counts[name] = counts.get(name, 0.0) + float(part.batch.masks.count())
    return dict(zip(counts, over_processes([*counts.values()], accelerator), strict=True))
