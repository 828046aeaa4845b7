"""Linear layers with GELU between: the head of 1.0 and the end of 2.0's decoder."""

from collections.abc import Sequence
from itertools import pairwise

from torch import nn


def projection(widths: Sequence[int]) -> nn.Sequential:
    """From the first of ``widths`` to the last, [..., D] to [..., D']."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.GELU()]
    return nn.Sequential(*layers[:-1])
