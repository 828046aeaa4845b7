"""Pixels of 8 bits, as which images travel from the data workers to the device."""

import torch
from torch import Tensor

STEPS = 255


def normalised(pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 [..., 3, height, width] to what encoders take; scaled first, as image processors do.

    Args:
        mean, std: float [3], of channels whose values are from 0 to 1; their type is the result's.
    """
    values = pixels.to(mean.dtype, memory_format=torch.contiguous_format).div_(STEPS)
    return values.sub_(mean[:, None, None]).div_(std[:, None, None])
