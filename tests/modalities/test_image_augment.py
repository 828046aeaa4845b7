"""Crop, flip and jitter of training images: timm's, resized as a tensor."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torchvision.transforms import v2

from selfdistill.config import RunConfig
from selfdistill.modalities.image import augment
from selfdistill.modalities.image.augment import Augmentation, cropped, jittered

Make = Callable[..., RunConfig]


def smooth(width: int, height: int, seed: int = 0) -> Image.Image:
    """Blurred noise, as photographs are."""
    noise = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def noise(width: int, height: int) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def augmentation(make: Make, **changes: Any) -> Augmentation:
    return Augmentation(make("image", input={"color_jitter": 0.0, **changes}).input)


def timm_s(ours: Augmentation) -> Callable[[Image.Image], Tensor]:
    """The transform that ours stands for; uint8 [3, height, width]."""
    config = ours.config
    transform: Callable[[Image.Image], Tensor] = create_transform(
        input_size=(3, *config.size),
        is_training=True,
        scale=config.crop_scale,
        ratio=config.crop_ratio,
        hflip=config.flip,
        color_jitter=config.color_jitter,
        interpolation="bicubic",
        normalize=False,
    )
    return transform


def off(ours: Augmentation, image: Image.Image, seeds: int) -> np.ndarray:
    """Differences to timm's in steps of 8 bits, one row of pixels per seed."""
    theirs, found = timm_s(ours), []
    for seed in range(seeds):
        made = []
        for transform in (ours, theirs):
            random.seed(seed)
            torch.manual_seed(seed)
            made.append(transform(image))
        found.append((made[0].float() - made[1].float()).abs().numpy().ravel())
    return np.stack(found)


SIZES = [(500, 375), (40, 30), (2, 2), (3, 700), (900, 4), (1600, 1200)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", [smooth, noise])
def test_the_same_draws_crop_and_flip_as_timm_does(
    kind: Callable[[int, int], Image.Image], size: tuple[int, int], tiny_config: Make
) -> None:
    """Another crop or flip would be tens of steps off on average."""
    ours = augmentation(tiny_config, size=[48, 64], flip=0.5)
    found = off(ours, kind(*size), seeds=16)
    assert found.max() <= 2
    assert found.mean() < 0.3


def test_the_same_draws_jitter_as_timm_does(tiny_config: Make) -> None:
    """timm's rounds to 8 bits after each of up to three changes; another factor or order would be
    tens of steps off."""
    ours = augmentation(tiny_config, size=[48, 64], color_jitter=0.4)
    found = off(ours, smooth(500, 375), seeds=32)
    assert found.max() < 8
    assert found.mean(axis=1).max() < 2


def test_jitter_is_torchvision_s_but_for_the_rounding() -> None:
    """Only sums that end in a half may be rounded the other way."""
    jitter = v2.ColorJitter(0.9, 0.9, 0.9)
    for seed in range(16):
        image = (smooth if seed % 2 else noise)(64, 48)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        torch.manual_seed(seed)
        expected = (jitter(pixels / 255) * 255).round()
        torch.manual_seed(seed)
        found = jittered(pixels, jitter.make_params([]))
        assert found.dtype == torch.uint8
        off = (found - expected).abs()
        assert off.max() <= 1
        assert (off > 0).float().mean() < 1e-3
        assert np.array_equal(pixels.permute(1, 2, 0), np.asarray(image))


def test_an_image_of_the_size_stays_as_it_is(tiny_config: Make) -> None:
    changes = {"crop_scale": [1.0, 1.0], "crop_ratio": [4 / 3, 4 / 3], "flip": 0.0}
    ours = augmentation(tiny_config, size=[48, 64], **changes)
    image = noise(64, 48)
    expected = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    assert torch.equal(ours(image), expected)


def test_certain_flips_mirror(tiny_config: Make) -> None:
    changes = {"crop_scale": [1.0, 1.0], "crop_ratio": [4 / 3, 4 / 3]}
    image = smooth(200, 150)
    kept, flipped = (augmentation(tiny_config, flip=flip, **changes)(image) for flip in (0.0, 1.0))
    assert torch.equal(kept.flip(-1), flipped)


def test_the_image_is_left_alone(tiny_config: Make) -> None:
    """It may be augmented again."""
    image = noise(64, 48)
    before = image.tobytes()
    values = augmentation(tiny_config, flip=0.0)(image)
    values.zero_()
    assert image.tobytes() == before


@pytest.mark.parametrize("band", [1, 100, 1 << 18])
def test_a_crop_is_the_pixels_of_its_box(band: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(augment, "BAND_PIXELS", band)
    image = noise(40, 30)
    found = cropped(image, 5, 7, 23, 31)
    assert np.array_equal(found.permute(1, 2, 0), np.asarray(image)[5:28, 7:38])


def test_a_large_crop_is_taken_in_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of all of 100 million pixels within Pillow would be 400 MB more per worker."""
    taken = []
    crop = Image.Image.crop

    def recorded(image: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
        taken.append((box[2] - box[0]) * (box[3] - box[1]))
        return crop(image, box)

    monkeypatch.setattr(Image.Image, "crop", recorded)
    cropped(Image.new("RGB", (1000, 900)), 0, 0, 900, 1000)
    assert sum(taken) == 900_000
    assert max(taken) <= augment.BAND_PIXELS
