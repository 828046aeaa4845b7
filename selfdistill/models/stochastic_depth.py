"""What training leaves out of the trunk by chance: whole blocks, and branches for some rows.

Sources: layer drop, arXiv 1909.11556; stochastic depth ("drop path"), arXiv 1603.09382. A branch is
computed for the rows that keep it only, as in DINOv2 (arXiv 2304.07193, section 5).
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from selfdistill.config import ModelConfig


class Kept(NamedTuple):
    """The rows for which each branch of a block is computed, int64 [1 to B]."""

    attention: Tensor
    ffn: Tensor


class StochasticDepth:
    """Draws what is left out.

    Which blocks and how many rows must be the same on all processes, which could not share the
    weights of a block that only some of them run; seed it so. Which rows is drawn from torch's
    global generator of the device.

    Args:
        config: ``layer_drop``, and ``drop_path``, which rises linearly from 0 at the first block.
    """

    def __init__(self, config: ModelConfig) -> None:
        self.layer_drop = config.layer_drop
        self.rates: list[float] = np.linspace(0, config.drop_path, config.depth).tolist()
        self.seed(0)

    def seed(self, seed: int) -> None:
        """Begin anew."""
        self._chance = np.random.default_rng(seed)

    def run(self) -> list[int]:
        """The numbers of the blocks that are not left out."""
        if not self.layer_drop:
            return [*range(len(self.rates))]
        return (self._chance.random(len(self.rates)) >= self.layer_drop).nonzero()[0].tolist()

    def kept(self, block: int, rows: int, device: torch.device) -> Kept | None:
        """The rows that keep the branches of a block; None: all do.

        Their number is the expected one, rounded by chance to the next larger or smaller, so that
        each row keeps a branch as often as it should; but one row at least does.
        """
        rate = self.rates[block]
        return Kept(*(self._rows(rate, rows, device) for _ in Kept._fields)) if rate else None

    def _rows(self, rate: float, rows: int, device: torch.device) -> Tensor:
        count = max(int(rows * (1 - rate) + self._chance.random()), 1)
        # torch.randperm would draw on the host
        return torch.rand(rows, device=device).argsort()[:count]
