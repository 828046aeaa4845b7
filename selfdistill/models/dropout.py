"""Dropout whose draws are cheap on a CPU, too."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LEVELS = 2**16
"""Of chances that 16 random bits can tell apart."""


class Dropout(nn.Module):
    """``nn.Dropout``. On a CPU, where torch takes four to six times as long to draw, an element
    takes 16 random bits, and the chance is rounded to a multiple of 2^-16.

    Args:
        rate: chance of an element to become 0, from 0 to below 1.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def extra_repr(self) -> str:
        return f"rate={self.rate}"

    def forward(self, x: Tensor) -> Tensor:
        """x, its elements left out by chance and the others larger, so that the mean stays."""
        if not self.training or not self.rate:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.rate)
        return (x * kept(x.shape, self.rate)).mul_(1 / keep_chance(self.rate))


def keep_chance(rate: float) -> float:
    """That ``kept`` keeps an element."""
    return 1 - _level(rate) / LEVELS


def kept(shape: torch.Size, rate: float) -> Tensor:
    """int8, on the CPU: 1 where dropout keeps an element, 0 where it does not; drawn from torch's
    global generator. Torch would take twice as long to multiply by booleans."""
    elements = math.prod(shape)
    words = torch.empty(-(-elements * 16 // 64), dtype=torch.int64)
    words.random_(-(2**63), None)  # all 64 bits
    level = _level(rate) - LEVELS // 2  # int16 begins there
    return words.view(torch.int16)[:elements].ge_(level).to(torch.int8).view(shape)


def _level(rate: float) -> int:
    return min(round(rate * LEVELS), LEVELS - 1)  # some are kept, or none could be made larger
