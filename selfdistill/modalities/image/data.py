"""Image bytes to pixels, random crops, and block masks."""

import io
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image, ImageOps
from timm.data import create_transform

from selfdistill.config import RunConfig
from selfdistill.errors import BadSample
from selfdistill.masking import block_masks
from selfdistill.modalities.base import InputPipeline
from selfdistill.types import Batch, Masks


@contextmanager
def _global_generators(seed: int) -> Iterator[None]:
    """Seed what timm's and torchvision's transforms draw from, and put it back afterwards."""
    python_state, torch_state = random.getstate(), torch.get_rng_state()
    random.seed(seed)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(python_state)
        torch.set_rng_state(torch_state)


class ImagePipeline(InputPipeline):
    """Examples are float32 [3, height, width], normalised by the config's mean and deviation."""

    extensions = ("jpg", "jpeg", "png", "webp")

    def __init__(self, config: RunConfig) -> None:
        image = config.input
        self.config = image
        self.mask = config.mask
        self.grid = tuple(side // config.encoder.patch_size for side in image.size)
        self.train_transform = create_transform(
            input_size=(3, *image.size),
            is_training=True,
            scale=tuple(image.crop_scale),
            ratio=tuple(image.crop_ratio),
            hflip=image.flip,
            color_jitter=image.color_jitter or None,
            auto_augment=None,
            interpolation="bicubic",
            mean=tuple(image.mean),
            std=tuple(image.std),
        )
        self.plain_transform = create_transform(
            input_size=(3, *image.size),
            is_training=False,
            interpolation="bicubic",
            crop_pct=1.0,
            mean=tuple(image.mean),
            std=tuple(image.std),
        )

    def decode(self, sample: Mapping[str, bytes]) -> Image.Image:
        """An RGB image, upright; grey, palette and CMYK are converted, alpha is put on white."""
        data = next(sample[e] for e in self.extensions if e in sample)
        if not data:
            raise BadSample("empty image")
        with warnings.catch_warnings():
            # our own limit replaces Pillow's
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            try:
                image = Image.open(io.BytesIO(data))
            except (Image.DecompressionBombError, OSError) as error:
                raise BadSample("undecodable image", str(error)) from error
            width, height = image.size
            if width * height > self.config.max_pixels:
                raise BadSample("image over input.max_pixels", f"{width} x {height} pixels")
            if width < 2 or height < 2:
                raise BadSample("image of one pixel's width or height", f"{width} x {height}")
            try:
                image = ImageOps.exif_transpose(image)
                if "A" in image.getbands() or "transparency" in image.info:
                    rgba = image.convert("RGBA")
                    image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
                return image.convert("RGB")
            except (OSError, SyntaxError, ValueError) as error:
                raise BadSample("undecodable image", str(error)) from error

    def augment(self, raw: Image.Image, rng: np.random.Generator) -> np.ndarray:
        with _global_generators(int(rng.integers(2**31))):
            return self.train_transform(raw).numpy()

    def plain(self, raw: Image.Image) -> np.ndarray:
        return self.plain_transform(raw).numpy()

    def collate(
        self, examples: Sequence[np.ndarray], mask_keys: np.ndarray | None, keys: Sequence[str] = ()
    ) -> Batch:
        masks = None
        if mask_keys is not None:
            blocks = block_masks(
                mask_keys,
                self.grid,
                count=self.mask.num_patches,
                min_block=self.mask.min_block,
                max_block=self.mask.max_block or None,
                min_aspect=self.mask.min_aspect,
            )
            masks = Masks.from_bool(blocks.reshape(len(examples), -1))
        return Batch(torch.from_numpy(np.stack(examples)), masks=masks, keys=keys)

    def baseline(self, example: np.ndarray) -> np.ndarray:
        """The pixels, [3 height width]."""
        return example.reshape(-1)
