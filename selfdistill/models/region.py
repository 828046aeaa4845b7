"""Parts of a model that can trade time for memory, or be compiled, each by itself."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

MOST_COMPILATIONS = 64
"""Of one kind of region. A block is compiled for student and teacher, with and without padding,
biases and rows that drop path leaves out, for all tokens and for some, and once more when lengths
turn out to vary; torch would give up after 8 and go on without a word."""


class Region(nn.Module, ABC):
    """A part that depends on its inputs and its own weights alone.

    Wrappers would change the names of its weights, which checkpoints keep, so that it does both by
    itself.

    Attributes:
        recompute: whether the backward pass computes once more what lies between input and output,
            which then need not be kept.
    """

    recompute = False

    @abstractmethod
    def compute(self, *inputs: Any) -> Any:
        """What the part does, without hooks."""

    def forward(self, *inputs: Any) -> Any:
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(self.compute, *inputs, use_reentrant=False)
        return self.compute(*inputs)


def prepare_regions(model: nn.Module, recompute: bool, compiled: bool) -> None:
    """Set how all regions of a model are run."""
    if compiled:
        import torch._dynamo  # takes a second or two

        torch._dynamo.config.recompile_limit = MOST_COMPILATIONS
    for region in model.modules():
        if isinstance(region, Region):
            region.recompute = recompute
            if compiled:
                region.compute = torch.compile(region.compute)  # type: ignore[method-assign]


def compilations() -> int:
    """How many graphs were compiled so far; it soon stops rising, or time is lost to it."""
    import torch._dynamo.utils

    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])
