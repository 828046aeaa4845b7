"""Image bytes to pixels, random crops, and block masks."""

import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from timm.data import create_transform
from torch import nn

from selfdistill.config import RunConfig
from selfdistill.data.pipeline import InputPipeline
from selfdistill.errors import BadSample
from selfdistill.masking import block_masks, clone_keys, painted_squares
from selfdistill.modalities.image.augment import Augmentation, global_generators
from selfdistill.modalities.image.pixels import normalised
from selfdistill.types import Batch, Masks

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
"""What a member may hold, whatever its extension. Pillow's other formats include EPS, which it
hands to an interpreter of programs."""
BASELINE_SIDE = 32
"""Pixels from side to side that the probes' baseline has at most."""
_WITH_ORIENTATION = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")
"""What Pillow would write anew for a picture that it turns, which fails on odd entries."""


@contextmanager
def decoding(max_pixels: int) -> Iterator[None]:
    """Let Pillow decode bytes that nobody vouches for.

    It opens nothing that has more pixels, and warns of nothing, such as EXIF data that are damaged;
    its own limit is put back afterwards.

    Raises:
        BadSample: whatever it raises.
    """
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = max_pixels
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except BadSample:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadSample(f"image over input.max_pixels={max_pixels}", _pixels_in(error)) from error
    except UnidentifiedImageError as error:
        raise BadSample("undecodable image", f"none of {', '.join(FORMATS)}") from error
    except Exception as error:  # Pillow's plugins raise all sorts of things on corrupt bytes
        raise BadSample("undecodable image", str(error)) from error
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _pixels_in(error: Exception) -> str:
    """How many an image has that Pillow refuses; the limit it names may be twice its own."""
    found = re.search(r"\d+", str(error))
    return f"{int(found[0]):,} pixels" if found else str(error)


def check_sides(image: Image.Image) -> None:
    """Refuse what cannot be resized to anything of use."""
    if min(image.size) < 2:
        raise BadSample("image of one pixel's width or height", "{} x {}".format(*image.size))


def upright_rgb(image: Image.Image) -> Image.Image:
    image.load()
    image.getexif()
    for key in _WITH_ORIENTATION:
        image.info.pop(key, None)
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I"):
        # Pillow would clip 16 bits at 255
        image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy


class ImagePipeline(InputPipeline):
    """Examples are uint8 [3, height, width]: they travel to the device in a quarter of the room of
    floats, and the encoder normalises them there."""

    extensions = ("jpg", "jpeg", "png", "webp")
    baseline_name = "pixels"

    def __init__(self, config: RunConfig) -> None:
        image = config.input
        self.config = image
        self.mask = config.mask
        self.grid = tuple(side // config.encoder.patch_size for side in image.size)
        self.train_transform = Augmentation(image)
        self.plain_transform = create_transform(
            input_size=(3, *image.size),
            is_training=False,
            interpolation="bicubic",
            crop_pct=1.0,
            crop_mode="squash",  # as the published image processors do it
            normalize=False,
        )
        self.mean, self.std = torch.tensor(image.mean), torch.tensor(image.std)

    def decode(self, sample: Mapping[str, bytes]) -> Image.Image:
        """An RGB image, upright; grey, palette and CMYK are converted, alpha is put on white."""
        data = next(sample[e] for e in self.extensions if e in sample)
        if not data:
            raise BadSample("empty image")
        with decoding(self.config.max_pixels):
            image = upright_rgb(Image.open(io.BytesIO(data), formats=FORMATS))
        check_sides(image)
        return image

    def augment(self, raw: Image.Image, rng: np.random.Generator) -> np.ndarray:
        with global_generators(int(rng.integers(2**31))):
            return self.train_transform(raw).numpy()

    def plain(self, raw: Image.Image) -> np.ndarray:
        pixels: np.ndarray = self.plain_transform(raw).numpy()
        return pixels

    def collate(
        self, examples: Sequence[np.ndarray], mask_keys: np.ndarray | None, keys: Sequence[str] = ()
    ) -> Batch:
        masks = None if mask_keys is None else self._masks(mask_keys)
        return Batch(torch.from_numpy(np.stack(examples)), masks=masks, keys=keys)

    def _masks(self, keys: np.ndarray) -> Masks:
        mask = self.mask
        keys = clone_keys(keys, mask.num_masks)
        if mask.kind == "squares":
            masked = painted_squares(
                keys,
                self.grid,
                prob=mask.mask_prob,
                length=mask.mask_length,
                adjust=mask.mask_prob_adjust,
                inverse=mask.inverse_mask,
            )
        else:
            masked = block_masks(
                keys,
                self.grid,
                count=mask.num_patches,
                min_block=mask.min_block,
                max_block=mask.max_block or None,
                min_aspect=mask.min_aspect,
            )
        return Masks.from_bool(masked.reshape(len(keys), -1))

    def baseline(self, example: np.ndarray) -> np.ndarray:
        """The normalised pixels; larger images are averaged down to at most ``BASELINE_SIDE`` in
        height and width."""
        pixels = normalised(torch.from_numpy(example), self.mean, self.std)
        height, width = (min(side, BASELINE_SIDE) for side in pixels.shape[1:])
        return nn.functional.adaptive_avg_pool2d(pixels, (height, width)).flatten().numpy()
