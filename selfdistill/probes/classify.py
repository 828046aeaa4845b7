"""Three ways to ask frozen features for the label, each with its choice of layer.

Whatever is chosen (layer, scale, regularisation) is chosen on a stratified fifth of the training
split; the test split is looked at once. Of more than ``CHOICE_SAMPLES`` training samples choices
are made on so many of them, in the same shares per class; what is chosen is then fitted on all:
by L-BFGS up to ``DESCENT_FROM`` samples, above by stochastic descent in batches. So one layer of
the training samples up to that number is in memory at a time, and blocks of all else.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from typing import TypeVar

import numpy as np

from selfdistill.probes.axes import PrincipalAxes
from selfdistill.probes.bootstrap import Interval, mean_interval, standard_error
from selfdistill.probes.features import Features
from selfdistill.probes.neighbours import vote
from selfdistill.probes.regression import Classifier, fit_by_descent, fit_regression
from selfdistill.probes.splits import choice_samples, group_split, validation_split

SHRINKAGE = (10.0, 1.0, 1e-2, 1e-4)
LINEAR_C = (1e-3, 1e-2, 1e-1, 1.0)
LINEAR_FIRST_C = 1e-1
FEW_SHOT_C = 1e-2
DESCENT_FROM = 50_000
BLOCK = 8_192
"""Rows that are classified at a time."""

Choice = TypeVar("Choice")


@dataclass(frozen=True)
class Score:
    """What a probe found.

    Attributes:
        accuracy: share of the test split that is right, 0 to 1; a mean where there are draws.
        standard_error: of the accuracy, see ``bootstrap.standard_error``.
        interval: of the accuracy, 95 %; see ``mean_interval``.
        layer: the layer that did best on the validation part.
        right: float64 [n], whether each test sample was told right; a mean where there are draws.
        std: deviation over the draws (n - 1 in the denominator), None without draws.
        layers: the same of every layer, where that was asked for.
    """

    accuracy: float
    standard_error: float
    interval: Interval
    layer: int
    right: np.ndarray = field(compare=False, repr=False)
    std: float | None = None
    layers: "Sequence[Score]" = ()


def score(
    right: np.ndarray,
    layer: int,
    seed: int,
    groups: np.ndarray | None = None,
    std: float | None = None,
) -> Score:
    """The score of a layer; see ``Score.right`` and ``Features.groups``."""
    right = right.astype(np.float64)
    error, interval = standard_error(right, groups), mean_interval(right, seed, groups)
    return Score(float(right.mean()), error, interval, layer, right, std)


class Probes:
    """The three probes of one labelled set and one source of features.

    Args:
        train: layers float32 [N, D] and labels of the training split; some class has two samples.
        test: the same of the test split.
        seed: of the validation part and of the few-shot draws. They depend on the labels besides,
            not on the features, so that all sources are judged on the same samples.
        every_layer: also fit and test the layers that are not chosen.
    """

    def __init__(
        self, train: Features, test: Features, seed: int = 0, every_layer: bool = False
    ) -> None:
        self._train, self._test, self._seed = train, test, seed
        self._every_layer = every_layer
        self._layers = range(len(train.layers))
        chosen = choice_samples(train.labels, seed)
        if train.groups is None:
            fit, held = validation_split(train.labels[chosen], seed)
        else:
            fit, held = group_split(train.groups[chosen], seed)
        self._chosen, self._fit, self._held = chosen, fit, held  # the latter two among chosen
        self._drawn_from = np.setdiff1d(np.arange(len(train.labels)), chosen[held])
        self._kept: tuple[int, np.ndarray] = (-1, np.empty(0))

    @cached_property
    def _axes(self) -> list[PrincipalAxes]:
        """Of each layer; nearest neighbours do without."""
        return [PrincipalAxes(self._rows(layer, self._chosen)) for layer in self._layers]

    def linear(self) -> Score:
        """Multinomial logistic regression with an L2 penalty on scaled features.

        The scale is that of ``PrincipalAxes``. Layer and scale are chosen at one regularisation,
        then the regularisation; what is chosen is fitted again on the whole training split.
        """
        choices = list(product(self._layers, SHRINKAGE))
        found = {choice: self._validated(choice, LINEAR_FIRST_C) for choice in choices}

        def of_layer(layer: int) -> Score:
            at = _best([c for c in choices if c[0] == layer], found.__getitem__)
            c = _best(LINEAR_C, lambda c: self._validated(at, c))
            right = self._right(self._fitted(at, c), at)
            return score(right, layer, self._seed, self._test.groups)

        return self._scores(_best(choices, found.__getitem__)[0], of_layer)

    def few_shot(self, labels_per_class: int, draws: int) -> Score:
        """The same on ``labels_per_class`` samples of each class, drawn ``draws`` times.

        The draws leave out the validation part, which chooses layer and scale for all of them;
        the axes, which need no labels, are those of the whole training split. Every class needs
        twice ``labels_per_class`` samples.
        """
        labels, held = self._train.labels, self._chosen[self._held]
        shots = [self._draw(labels_per_class, draw) for draw in range(draws)]

        def models(choice: tuple[int, float]) -> list[Classifier]:
            return [fit_regression(self._scaled(choice, s), labels[s], FEW_SHOT_C) for s in shots]

        def validated(choice: tuple[int, float]) -> float:
            x = self._scaled(choice, held)
            return float(np.mean([(m.predict(x) == labels[held]).mean() for m in models(choice)]))

        choices = list(product(self._layers, SHRINKAGE))
        found = {choice: validated(choice) for choice in choices}

        def of_layer(layer: int) -> Score:
            at = _best([c for c in choices if c[0] == layer], found.__getitem__)
            right = np.array([self._right(model, at) for model in models(at)], dtype=np.float64)
            std = float(np.std(right.mean(axis=1), ddof=1)) if draws > 1 else 0.0
            return score(right.mean(axis=0), layer, self._seed, std=std)

        return self._scores(_best(choices, found.__getitem__)[0], of_layer)

    def nearest(self, neighbours: Sequence[int]) -> dict[int, Score]:
        """Cosine nearest neighbours that vote, by their number, each with its own choice of layer.

        As in InstDisc (arXiv 1805.01978, section 3.4) and DINO (arXiv 2104.14294, section 3.2),
        on the features as they are; see ``vote``.
        """
        train, test = self._train, self._test
        fit, held = self._chosen[self._fit], self._chosen[self._held]
        validated: dict[int, list[float]] = {k: [] for k in neighbours}
        for layer in self._layers:
            x, y = self._rows(layer, fit), self._rows(layer, held)
            for k, told in vote(x, train.labels[fit], y, neighbours).items():
                validated[k].append(float((told == train.labels[held]).mean()))
        best = {k: _best(self._layers, found.__getitem__) for k, found in validated.items()}
        scores: dict[int, dict[int, Score]] = {k: {} for k in neighbours}
        for layer in self._layers:
            asked = [k for k in neighbours if self._every_layer or best[k] == layer]
            if not asked:
                continue
            told_by = vote(train.layers[layer], train.labels, test.layers[layer], asked)
            for k, told in told_by.items():
                right = told == test.labels
                scores[k][layer] = score(right, layer, self._seed, test.groups)
        return {k: self._scores(best[k], scores[k].__getitem__) for k in neighbours}

    def _scores(self, chosen: int, of_layer: Callable[[int], Score]) -> Score:
        if not self._every_layer:
            return of_layer(chosen)
        every = tuple(of_layer(layer) for layer in self._layers)
        return replace(every[chosen], layers=every)

    def _rows(self, layer: int, numbers: np.ndarray) -> np.ndarray:
        return np.asarray(self._train.layers[layer][numbers], dtype=np.float32)

    def _along(self, layer: int) -> np.ndarray:
        """Coordinates of the samples that choices are made on, kept until another layer's turn."""
        if self._kept[0] != layer:
            x = self._axes[layer].coordinates(self._rows(layer, self._chosen))
            self._kept = layer, x
        return self._kept[1]

    def _scaled(self, choice: tuple[int, float], numbers: np.ndarray) -> np.ndarray:
        """Training features of any samples."""
        layer, shrinkage = choice
        scale = self._axes[layer].scale(shrinkage)
        if len(self._chosen) == len(self._train.labels):
            return self._along(layer)[numbers] * scale
        return self._axes[layer].coordinates(self._rows(layer, numbers)) * scale

    def _validated(self, choice: tuple[int, float], c: float) -> float:
        """Accuracy on the validation part."""
        x = self._along(choice[0]) * self._axes[choice[0]].scale(choice[1])
        labels, fit, held = self._train.labels[self._chosen], self._fit, self._held
        model = fit_regression(x[fit], labels[fit], c)
        return float((model.predict(x[held]) == labels[held]).mean())

    def _fitted(self, choice: tuple[int, float], c: float) -> Classifier:
        """On the whole training split."""
        labels = self._train.labels
        if len(labels) <= DESCENT_FROM:
            return fit_regression(self._scaled(choice, np.arange(len(labels))), labels, c)
        axes = self._axes[choice[0]]
        whitening = axes.white() / axes.scale(choice[1])
        return fit_by_descent(
            lambda numbers: self._scaled(choice, numbers), labels, c, whitening, self._seed
        )

    def _right(self, model: Classifier, choice: tuple[int, float]) -> np.ndarray:
        """Whether each test sample is told right, bool [N]."""
        layer, shrinkage = choice
        axes, tested = self._axes[layer], self._test.layers[layer]
        scale = axes.scale(shrinkage)
        blocks = (tested[start : start + BLOCK] for start in range(0, len(tested), BLOCK))
        told = [
            model.predict(axes.coordinates(np.asarray(x, dtype=np.float32)) * scale) for x in blocks
        ]
        return np.concatenate(told) == self._test.labels

    def _draw(self, count: int, draw: int) -> np.ndarray:
        """Indices of ``count`` samples of each class, outside the validation part."""
        rng = np.random.default_rng([self._seed, draw])
        labels = self._train.labels[self._drawn_from]
        members = [self._drawn_from[labels == label] for label in np.unique(labels)]
        return np.concatenate([rng.choice(m, count, replace=False) for m in members])


def _best(choices: Iterable[Choice], accuracy: Callable[[Choice], float]) -> Choice:
    """The choice with the highest accuracy, the first of equals."""
    return max(choices, key=accuracy)
