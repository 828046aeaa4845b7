"""Samples side by side, as training sees them: with the chance of augmentation and their masks."""

import math
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
from matplotlib.figure import Figure

from selfdistill.data.pipeline import InputPipeline, training_example
from selfdistill.data.plain import Samples, label_of
from selfdistill.errors import SelfdistillError
from selfdistill.masking import row_keys
from selfdistill.modalities.picture import Area, SamplePicture, Shown

GAP, TITLE = 0.22, 0.22
LETTER = 0.062
"""Inches of a title's letter, about."""


def masked_in(
    pipeline: InputPipeline, example: np.ndarray, seed: int, number: int
) -> np.ndarray | None:
    """What the first mask of an example hides, bool [T]; None: there are no masks."""
    masks = pipeline.collate([example], row_keys(seed, np.array([number]))).masks
    return None if masks is None else masks.masked[0].numpy()


def training_examples(
    samples: Samples, numbers: Sequence[int], picture: SamplePicture, seed: int
) -> Iterator[Shown]:
    """The good ones of some samples as training sees them.

    Raises:
        SelfdistillError: a shard cannot be read.
    """
    pipeline = picture.pipeline
    assert pipeline is not None
    for number in numbers:
        key, members = samples.read(number)
        try:
            example = training_example(pipeline, picture.decode(members), seed, number)
            masked = masked_in(pipeline, example, seed, number)
        except SelfdistillError:
            raise
        except Exception:  # a bad sample, which training replaces
            continue
        yield Shown(key, label_of(members), example, masked)


class Grid:
    """Samples in rows of ``SamplePicture.columns``, each under its title.

    Args:
        picture: draws them.
        shown: the samples.
        width: of a row, in inches.
        most: inches of height; rows that do not fit are left out, but for the first one.
    """

    def __init__(
        self, picture: SamplePicture, shown: Sequence[Shown], width: float, most: float = math.inf
    ) -> None:
        self._picture = picture
        self._wide = (width - (picture.columns - 1) * GAP) / picture.columns
        self._rows: list[tuple[list[Shown], float]] = []
        self.height = 0.0
        rest = iter(shown)
        while row := list(islice(rest, picture.columns)):
            height = max(picture.height(sample, self._wide) for sample in row)
            if self._rows and self.height + TITLE + height + GAP > most:
                break
            self._rows.append((row, height))
            self.height += TITLE + height + GAP

    def draw(self, figure: Figure, left: float, top: float) -> None:
        """Draw all below a place, in inches from the figure's lower left corner."""
        wide, tall = figure.get_size_inches()
        letters = math.floor(self._wide / LETTER)
        for row, height in self._rows:
            for column, shown in enumerate(row):
                x = left + column * (self._wide + GAP)
                title = _shortened(shown.title, letters)
                figure.text(x / wide, (top - 0.14) / tall, title, size=8, va="baseline")
                own = self._picture.height(shown, self._wide)
                area = Area(figure, x, top - TITLE - own, self._wide, own)
                self._picture.draw(area, shown)
            top -= TITLE + height + GAP


def _shortened(text: str, most: int) -> str:
    text = "".join(c if c.isprintable() else "?" for c in text)
    if len(text) <= most:
        return text
    return f"{text[: most // 2 - 2]}...{text[len(text) - (most - most // 2) + 1 :]}"
