"""Random crop, flip and colour jitter of training."""

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

from selfdistill.modalities.image.config import ImageInputConfig
from selfdistill.modalities.image.pixels import STEPS

BAND_PIXELS = 1 << 18
"""Pillow hands pixels out as bytes, twice as many as they are for a moment: so many at once."""
GREY = (0.2989, 0.587, 0.114)
"""Shares of red, green and blue, as torchvision has them."""
BRIGHTNESS, CONTRAST, SATURATION = range(3)
"""Its numbers of the changes; 3 is the hue, which stays."""


@contextmanager
def global_generators(seed: int) -> Iterator[None]:
    """Seed what timm's and torchvision's transforms draw from, and put it back afterwards."""
    python_state, torch_state = random.getstate(), torch.get_rng_state()
    random.seed(seed)
    # torch.manual_seed would seed every device's generator too, which takes a hundred times as long
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(python_state)
        torch.set_rng_state(torch_state)


class Augmentation:
    """timm's transforms of an image for training, from the same draws of the ``global_generators``.

    Theirs resize by Pillow. The same filter on a tensor takes a seventh of the time. It differs by
    a step of 8 bits here and there; where neighbours are black and white by up to thirty, because
    what overshoots is clipped after the columns, not after the rows. Neither is closer to the exact
    sum. Jitter is rounded to 8 bits once, not after each of its changes.
    """

    def __init__(self, config: ImageInputConfig) -> None:
        self.config = config
        self.jitter = v2.ColorJitter(*3 * [config.color_jitter])

    def __call__(self, image: Image.Image) -> Tensor:
        """uint8 [3, height, width] of an RGB image."""
        config = self.config
        top, left, height, width = RandomResizedCropAndInterpolation.get_params(
            image, config.crop_scale, config.crop_ratio
        )
        crop = cropped(image, top, left, height, width)
        pixels = functional.resize(crop, config.size, InterpolationMode.BICUBIC, antialias=True)
        if config.flip and torch.rand(1) < config.flip:
            pixels = pixels.flip(-1)
        return jittered(pixels, self.jitter.make_params([])) if config.color_jitter else pixels


def jittered(pixels: Tensor, draws: Mapping[str, Any]) -> Tensor:
    """uint8 [3, height, width] as torchvision's jitter changes it by these draws, in half the time:
    in place, because the time goes into new memory."""
    values = pixels.to(torch.float32, memory_format=torch.contiguous_format)
    red, green, blue = values
    grey = torch.empty_like(red)
    for change in draws["fn_idx"].tolist():
        if change == BRIGHTNESS:
            values.mul_(draws["brightness_factor"])
        elif change in (CONTRAST, SATURATION):
            torch.mul(red, GREY[0], out=grey).add_(green, alpha=GREY[1]).add_(blue, alpha=GREY[2])
            target, name = (grey.mean(), "contrast") if change == CONTRAST else (grey, "saturation")
            factor = draws[f"{name}_factor"]
            values.mul_(factor).add_(target, alpha=1 - factor)
        values.clamp_(0, STEPS)
    return values.round_().to(torch.uint8)


def cropped(image: Image.Image, top: int, left: int, height: int, width: int) -> Tensor:
    """uint8 [3, height, width] of an RGB image; a view of [height, width, 3], as it is resized
    fastest."""
    pixels = np.empty((height, width, 3), np.uint8)
    rows = max(BAND_PIXELS // width, 1)
    for first in range(0, height, rows):
        band = pixels[first : first + rows]
        begin = top + first
        band[:] = np.asarray(image.crop((left, begin, left + width, begin + len(band))))
    return torch.from_numpy(pixels).permute(2, 0, 1)
