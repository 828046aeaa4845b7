"""Numbers that the device has still to compute."""

import torch
from torch import Tensor


class Late:
    """Numbers on their way to the host. Only reading them waits, and for them alone: what the
    device was given to do since then goes on.

    Args:
        numbers: of one dimension.
    """

    def __init__(self, numbers: Tensor) -> None:
        self._arrived: torch.cuda.Event | None = None
        if numbers.is_cuda:
            self._numbers = numbers.to("cpu", non_blocking=True)  # into pinned memory
            self._arrived = torch.cuda.Event()
            self._arrived.record()
        else:
            self._numbers = numbers.cpu()

    def read(self) -> list[float]:
        """The numbers, once they are there."""
        if self._arrived is not None:
            self._arrived.synchronize()
        found: list[float] = self._numbers.tolist()
        return found
