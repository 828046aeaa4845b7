"""Images for people: pixels, with what is masked washed out and outlined."""

from collections.abc import Mapping

import numpy as np
from matplotlib.collections import LineCollection
from PIL import Image

from selfdistill.config import RunConfig
from selfdistill.modalities.image.data import ImagePipeline
from selfdistill.modalities.image.pixels import STEPS
from selfdistill.modalities.picture import MASKED, Area, SamplePicture, Shown

LARGEST = 512
"""Pixels from side to side that an image is drawn with at most."""
WASH = 0.8


class ImagePicture(SamplePicture):
    extensions = ImagePipeline.extensions
    columns = 4

    def __init__(self, config: RunConfig) -> None:
        self.pipeline: ImagePipeline = ImagePipeline(config)

    def decode(self, members: Mapping[str, bytes]) -> Image.Image:
        return self.pipeline.decode(members)

    def measures(self, value: Image.Image) -> dict[str, float]:
        return {"width (pixels)": value.width, "height (pixels)": value.height}

    def height(self, shown: Shown, width: float) -> float:
        tall, wide = self._pixels(shown).shape[:2]
        return min(width * tall / wide, width)

    def _pixels(self, shown: Shown) -> np.ndarray:
        """float [height, width, 3] from 0 to 1."""
        if shown.masked is None:
            small = shown.value.copy()
            small.thumbnail((LARGEST, LARGEST))
            return np.asarray(small) / STEPS
        return shown.value.transpose(1, 2, 0) / STEPS

    def draw(self, area: Area, shown: Shown) -> None:
        pixels = self._pixels(shown)
        axes = area.axes(0, 0, area.width, area.height, anchor="NW")
        axes.set_axis_off()
        if shown.masked is not None:
            masked = shown.masked.reshape(self.pipeline.grid)
            patch = pixels.shape[0] // masked.shape[0]
            cover = np.kron(masked, np.ones((patch, patch)))[..., None]
            pixels = pixels * (1 - WASH * cover) + 0.5 * WASH * cover
        # as sharp as they are: blurred, one would take small pictures for bad ones
        axes.imshow(pixels, interpolation="nearest")
        if shown.masked is not None:
            edges = [patch * segment - 0.5 for segment in _outline(masked)]
            axes.add_collection(LineCollection(edges, colors=MASKED, linewidths=1.2))


def _outline(masked: np.ndarray) -> list[np.ndarray]:
    """Sides between masked patches and others of bool [h, w], as pairs of (x, y) in patches."""
    padded = np.pad(masked, 1)
    below = np.argwhere(padded[1:, 1:-1] != padded[:-1, 1:-1])  # a side above patch (row, column)
    beside = np.argwhere(padded[1:-1, 1:] != padded[1:-1, :-1])  # one to the left of it
    level = [np.array([(x, y), (x + 1, y)], float) for y, x in below.tolist()]
    upright = [np.array([(x, y), (x, y + 1)], float) for y, x in beside.tolist()]
    return level + upright
