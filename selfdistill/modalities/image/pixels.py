"""Pixels of 8 bits, as which images travel from the data workers to the device."""

import torch
from torch import Tensor

STEPS = 255


def unit_range(pixels: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """uint8 [..., height, width] to new ones from 0 to 1, contiguous."""
    return pixels.to(dtype, memory_format=torch.contiguous_format).div_(STEPS)


def normalised(pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 [..., 3, height, width] to what encoders take; scaled first, as image processors do.

    Args:
        mean, std: float [3], of channels whose values are from 0 to 1; their type is the result's.
    """
    values = unit_range(pixels, mean.dtype)
    return values.sub_(mean[:, None, None]).div_(std[:, None, None])
