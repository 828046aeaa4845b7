"""A map of samples in two dimensions, coloured by their labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from sklearn.manifold import TSNE

from selfdistill.modalities.learned import ENCODERS, principal, sheet
from selfdistill.plots import COLOURS
from selfdistill.probes.features import UNLABELLED

CLASSES = 26
"""That are told apart; the others are grey."""
MARKERS = ("o", "^", "s", "D")
REST = "#B8B8B8"
FEWEST = 10
COMPONENTS = 30
"""That t-SNE is given."""
PERPLEXITY = 30.0
STEPS = 500
LEGEND_COLUMNS = 13
LEGEND_LINE = 0.17
SIDE, TITLE, GAP = 3.26, 0.2, 0.18
TOGETHER = 0.45
"""A class is named in the map where it is spread out less than this share of all samples."""


@dataclass(frozen=True)
class Planes:
    """Samples of one encoder in two dimensions.

    Attributes:
        principal, neighbourhoods: float [N, 2], the first principal components and t-SNE.
        share: of the variance, that the components have.
    """

    principal: np.ndarray
    neighbourhoods: np.ndarray
    share: float

    @classmethod
    def of(cls, x: np.ndarray, seed: int) -> "Planes":
        """Of features float [N, D]; t-SNE depends on the seed."""
        points, shares = principal(x, COMPONENTS)
        return cls(points[:, :2], _neighbourhoods(points, seed), float(shares[:2].sum()))


def draw_map(
    found: Mapping[str, Planes], labels: np.ndarray, by: str, origin: Sequence[str]
) -> Figure:
    """Principal components above, t-SNE below, one column for each of ``ENCODERS``.

    Args:
        found: the same samples by both.
        labels: int64 [N] of them.
        by: what the labels are called.
        origin: lines that say which samples and encoders these are.
    """
    classes = _largest(labels)
    rows = -(-len(classes) // LEGEND_COLUMNS)
    total = 2 * (SIDE + TITLE) + GAP + (LEGEND_LINE * rows + 0.1 if rows else 0)
    area = sheet(
        total,
        f"Map of samples by {by}" if classes else "Map of samples",
        [*origin, *_explained(labels, classes)],
    )
    for column, encoder in enumerate(ENCODERS):
        planes = found[encoder]
        title = f"{encoder}: two principal components, {100 * planes.share:.0f} % of the variance"
        panels = [(title, planes.principal), (f"{encoder}: t-SNE", planes.neighbourhoods)]
        for row, (title, points) in enumerate(panels):
            bottom = total - (row + 1) * (SIDE + TITLE) - row * GAP
            axes = area.axes(column * (area.width - SIDE), bottom, SIDE, SIDE)
            axes.set_title(title, fontsize=8, pad=4)
            _scatter(axes, points, labels, classes)
    if classes:
        _legend(area.figure, classes)
    return area.figure


def _explained(labels: np.ndarray, classes: Sequence[int]) -> list[str]:
    count = f"{len(labels):,} samples, each a point: the mean of its tokens."
    if not classes:
        return [f"{count} They have no labels."]
    others = int((~np.isin(labels, classes)).sum())
    if others:
        count += f" The {others:,} of other classes or of none are grey."
    return [count, "What a linear probe tells apart need not lie apart here."]


def _legend(figure: Figure, classes: Sequence[int]) -> None:
    handles = []
    for number, name in enumerate(classes):
        colour, marker = _look(number)
        handles.append(Line2D([], [], ls="", marker=marker, color=colour, ms=5, label=str(name)))
    figure.legend(
        handles=handles,
        loc="lower center",
        bbox_to_anchor=(0.5, 0.02 / float(figure.get_size_inches()[1])),
        ncols=-(-len(classes) // -(-len(classes) // LEGEND_COLUMNS)),
        fontsize=7.5,
        handletextpad=0.1,
        columnspacing=1.0,
        labelspacing=0.3,
        frameon=False,
    )


def _largest(labels: np.ndarray) -> list[int]:
    names, counts = np.unique(labels[labels != UNLABELLED], return_counts=True)
    chosen = np.sort(np.argsort(-counts, kind="stable")[:CLASSES])
    return [int(name) for name in names[chosen]]


def _look(number: int) -> tuple[str, str]:
    """Colour and marker of a class."""
    return COLOURS[number % len(COLOURS)], MARKERS[number // len(COLOURS)]


def _neighbourhoods(points: np.ndarray, seed: int) -> np.ndarray:
    """t-SNE, float [N, 2]; where there is nothing to spread out, the points stay."""
    spread = points[:, 0].std()
    if len(points) < FEWEST or not spread > 0:
        return points[:, :2]
    perplexity = min(PERPLEXITY, (len(points) - 1) / 3)
    found: np.ndarray = TSNE(
        perplexity=perplexity, max_iter=STEPS, init="pca", random_state=seed, n_jobs=1
    ).fit_transform(points / spread)
    return found


def _scatter(axes: Axes, points: np.ndarray, labels: np.ndarray, classes: Sequence[int]) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set_color("#D0D0D0")
    size = float(np.clip(4_000 / len(points), 4, 22))
    rest = points[~np.isin(labels, classes)]
    axes.scatter(rest[:, 0], rest[:, 1], s=size, color=REST, linewidths=0)
    for number, name in enumerate(classes):
        colour, marker = _look(number)
        own = points[labels == name]
        axes.scatter(
            own[:, 0], own[:, 1], s=size, color=colour, marker=marker, linewidths=0, alpha=0.75
        )
    whole = _spread(points)
    for name in classes:
        own = points[labels == name]
        if _spread(own) < TOGETHER * whole:
            axes.annotate(
                str(name),
                np.median(own, axis=0),
                ha="center",
                va="center",
                fontsize=8,
                weight="bold",
                path_effects=[withStroke(linewidth=2.2, foreground="white")],
            )


def _spread(points: np.ndarray) -> float:
    """Half of [N, 2] are closer to their middle than this."""
    return float(np.median(np.linalg.norm(points - np.median(points, axis=0), axis=1)))
