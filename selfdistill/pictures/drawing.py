"""Figures of what the encoders of a run make of samples, and their files."""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice

import matplotlib.style
import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from threadpoolctl import threadpool_limits

from selfdistill.config import RunConfig
from selfdistill.data.loader import Source
from selfdistill.modalities.backbone import Backbone
from selfdistill.modalities.base import load_modality
from selfdistill.modalities.learned import MARGIN, WIDTH, Look, sheet
from selfdistill.modalities.picture import SamplePicture
from selfdistill.pictures.examples import Grid, training_examples
from selfdistill.pictures.map import Planes, draw_map
from selfdistill.pictures.scene import (
    Scene,
    embedded,
    examples_of,
    mixed,
    richest,
    tokens_of,
    training_part,
)
from selfdistill.plots import STYLE
from selfdistill.probes.evaluate import Embedded, Evaluator

MOST_BYTES = 300_000
"""Of a file."""
COLOURS = 256
RESOLUTIONS = (150, 110, 80, 60)
SHOWN, SHOWN_HEIGHT = 12, 5.2
"""Training samples, and the inches in which as many of them are shown as fit."""


class Drawing:
    """Draws the samples of one modality, always the same ones.

    What the untrained encoder makes of them is kept in memory.

    Args:
        config, source, evaluator: as in ``Pictures``.
    """

    def __init__(self, config: RunConfig, source: Source, evaluator: Evaluator | None) -> None:
        self._config, self._evaluator = config, evaluator
        self._shards, self._pipeline = source.shards, source.pipeline
        self._modality = load_modality(config.modality)
        features = self._modality.features
        self._picture = None if features is None else features(config, source.pipeline)
        picture = self._modality.picture
        self._samples = None if picture is None else picture(config)
        self._plain: Embedded | None = None
        self._looks: list[Look] = []
        self._maps: dict[str, Planes] = {}
        self._numbers = np.empty(0, dtype=np.int64)

    @property
    def knows_untrained(self) -> bool:
        return bool(len(self._numbers))

    def figures(
        self, step: int, untrained: Backbone | None, trained: Backbone
    ) -> Iterator[tuple[str, Figure]]:
        """Names, words joined by ``_``, and figures; see ``Pictures``."""
        if self._samples is not None:
            yield "training_samples_with_masks", self._masked(self._samples, step)
        scenes = self._scenes(untrained, trained)
        origins = [scene.origin(self._modality.name, step, trained.depth) for scene in scenes]
        told = richest(scenes)
        looks = self._seen(scenes[told], untrained, trained)
        if self._picture is not None:
            yield from self._picture.draw(looks, origins[told]).items()
        for scene, origin in zip(scenes, origins, strict=True):
            before = self._maps.get(scene.task)
            if before is None:
                before = Planes.of(scene.untrained.x, self._config.seed)
                self._maps[scene.task] = before
            both = {
                "untrained": before,
                "trained": Planes.of(scene.trained.x, self._config.seed),
            }
            figure = draw_map(both, scene.trained.labels, scene.task or "label", origin)
            by = f"_by_{scene.task}" if scene.task else ""
            yield f"map_of_samples{by}", figure

    def _masked(self, picture: SamplePicture, step: int) -> Figure:
        """The same samples each time; augmentation and masks are drawn anew."""
        numbers = training_part(self._shards, self._config.seed).numbers
        examples = training_examples(self._shards, numbers, picture, step)
        width = WIDTH - 2 * MARGIN
        grid = Grid(picture, list(islice(examples, SHOWN)), width, SHOWN_HEIGHT)
        masks = self._config.mask.num_masks
        which = f"the first of {masks} masks" if masks > 1 else "one mask"
        origin = [
            f"{self._modality.name}, samples as training sees them, each under {which}.",
            "What is orange, or framed in orange, the student does not see.",
        ]
        area = sheet(grid.height, "Training samples with their masks", origin)
        grid.draw(area.figure, area.left, area.bottom + area.height)
        return area.figure

    def _scenes(self, untrained: Backbone | None, trained: Backbone) -> list[Scene]:
        if self._evaluator is not None:
            return [
                Scene(
                    name, self._evaluator.test_samples(name), found["untrained"], found["trained"]
                )
                for name, found in self._evaluator.embedded.items()
            ]
        part = training_part(self._shards, self._config.seed)

        def of(backbone: Backbone) -> Embedded:
            size = self._config.eval.batch_size
            return embedded(backbone, part, self._pipeline, size, self._config.seed)

        if self._plain is None:
            assert untrained is not None
            self._plain = of(untrained)
        return [Scene("", part, self._plain, of(trained))]

    def _seen(self, scene: Scene, untrained: Backbone | None, trained: Backbone) -> list[Look]:
        """Samples with the tokens of both encoders."""
        samples, pipeline = scene.samples, self._pipeline
        if not len(self._numbers):
            assert untrained is not None
            most = 1 if self._picture is None else self._picture.samples
            order = mixed(scene.untrained.labels, self._config.seed)[:most]
            self._numbers, tokens = tokens_of(
                untrained, samples, scene.untrained.numbers[order], pipeline, scene.untrained.layer
            )
            self._looks = [
                Look(key, label, example, {"untrained": x})
                for (key, example, label), x in zip(
                    examples_of(samples, self._numbers, pipeline), tokens, strict=True
                )
            ]
        _, tokens = tokens_of(trained, samples, self._numbers, pipeline, scene.trained.layer)
        return [
            Look(
                look.key,
                look.label,
                look.example,
                {
                    "untrained": look.tokens["untrained"].astype(np.float32),
                    "trained": x.astype(np.float32),
                },
            )
            for look, x in zip(self._looks, tokens, strict=True)
        ]


@contextmanager
def apart() -> Iterator[None]:
    """The style of the drawings, and random numbers of their own."""
    with (
        torch.random.fork_rng(devices=[]),  # nothing is drawn at random on a GPU
        matplotlib.style.context(["default", STYLE, {"text.hinting": "none"}]),
        warnings.catch_warnings(),
        # the matrices are small: more threads only take cores from the loader's workers
        threadpool_limits(limits=1),
    ):
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def as_png(figure: Figure) -> bytes:
    """As sharp as ``MOST_BYTES`` allow, at need in few colours."""
    for resolution in RESOLUTIONS:
        out = io.BytesIO()
        figure.savefig(out, format="png", dpi=resolution)
        if out.tell() > MOST_BYTES:
            drawn = Image.open(out).convert("RGB")
            out = io.BytesIO()
            drawn.quantize(COLOURS, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
        if out.tell() <= MOST_BYTES:
            break
    return out.getvalue()


def file_name(name: str) -> str:
    """A picture's name, which may have a task's in it, as that of a file."""
    return re.sub(r"[^\w .+-]", "-", name).lstrip(".")[:120]
