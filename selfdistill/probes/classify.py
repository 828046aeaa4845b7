"""Three ways to ask frozen features for the label, each with its choice of layer.

Whatever is chosen (layer, scale, regularisation) is chosen on a stratified fifth of the training
split; the test split is looked at once.
"""

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import product
from typing import TypeVar

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from selfdistill.probes.axes import PrincipalAxes
from selfdistill.probes.features import Features

VALIDATION_SHARE = 0.2
SHRINKAGE = (10.0, 1.0, 1e-2, 1e-4)
LINEAR_C = (1e-3, 1e-2, 1e-1, 1.0)
LINEAR_FIRST_C = 1e-1
FEW_SHOT_C = 1e-2
MAX_ITERATIONS = 100
TEMPERATURE = 0.07

Choice = TypeVar("Choice")


@dataclass(frozen=True)
class Score:
    """What a probe found.

    Attributes:
        accuracy: share of the test split that is right, 0 to 1; a mean where there are draws.
        standard_error: binomial, sqrt(p (1 - p) / n) over the n test samples.
        layer: the layer that did best on the validation part.
        std: deviation over the draws (n - 1 in the denominator), None without draws.
    """

    accuracy: float
    standard_error: float
    layer: int
    std: float | None = None


class Probes:
    """The three probes of one labelled set and one source of features.

    Args:
        train: layers float32 [N, D] and labels of the training split; every class has at least
            two samples.
        test: the same of the test split.
        seed: of the validation part and of the few-shot draws. They depend on the labels besides,
            not on the features, so that all sources are judged on the same samples.
    """

    def __init__(self, train: Features, test: Features, seed: int = 0) -> None:
        self._train, self._test, self._seed = train, test, seed
        self._layers = range(len(train.layers))
        self._fit, self._held = validation_split(train.labels, seed)
        self._axes = [PrincipalAxes(x) for x in train.layers]
        pairs = list(zip(self._axes, train.layers, test.layers, strict=True))
        self._coordinates = [(a.coordinates(x), a.coordinates(t)) for a, x, t in pairs]

    def linear(self) -> Score:
        """Multinomial logistic regression (L-BFGS, L2) on scaled features (``PrincipalAxes``).

        Layer and scale are chosen at one regularisation, then the regularisation; the chosen one
        is fitted again on the whole training split.
        """
        labels, fit, held = self._train.labels, self._fit, self._held

        def validated(choice: tuple[int, float], c: float) -> float:
            x, _ = self._scaled(*choice)
            return _regression(x[fit], labels[fit], x[held], labels[held], c)

        chosen = _best(product(self._layers, SHRINKAGE), lambda at: validated(at, LINEAR_FIRST_C))
        c = _best(LINEAR_C, lambda c: validated(chosen, c))
        x, tested = self._scaled(*chosen)
        return self._score(_regression(x, labels, tested, self._test.labels, c), chosen[0])

    def few_shot(self, labels_per_class: int, draws: int) -> Score:
        """The same on ``labels_per_class`` samples of each class, drawn ``draws`` times.

        The draws leave out the validation part, which chooses layer and scale for all of them;
        the axes, which need no labels, are those of the whole training split. Every class needs
        twice ``labels_per_class`` samples.
        """
        labels, held = self._train.labels, self._held
        shots = [self._draw(labels_per_class, draw) for draw in range(draws)]

        def accuracies(x: np.ndarray, tested: np.ndarray, expected: np.ndarray) -> list[float]:
            return [_regression(x[s], labels[s], tested, expected, FEW_SHOT_C) for s in shots]

        def validated(choice: tuple[int, float]) -> float:
            x, _ = self._scaled(*choice)
            return float(np.mean(accuracies(x, x[held], labels[held])))

        chosen = _best(product(self._layers, SHRINKAGE), validated)
        x, tested = self._scaled(*chosen)
        found = accuracies(x, tested, self._test.labels)
        std = float(np.std(found, ddof=1)) if draws > 1 else 0.0
        return self._score(float(np.mean(found)), chosen[0], std)

    def knn(self, neighbours: int) -> Score:
        """Cosine nearest neighbours that vote with weight exp(similarity / 0.07).

        As in InstDisc (arXiv 1805.01978, section 3.4) and DINO (arXiv 2104.14294, section 3.2),
        on the features as they are. Where there are fewer than ``neighbours`` samples, all vote.
        """
        train, fit, held = self._train, self._fit, self._held

        def validated(layer: int) -> float:
            x, labels = train.layers[layer], train.labels
            return _voting(x[fit], labels[fit], x[held], labels[held], neighbours)

        layer = _best(self._layers, validated)
        tested, expected = self._test.layers[layer], self._test.labels
        found = _voting(train.layers[layer], train.labels, tested, expected, neighbours)
        return self._score(found, layer)

    def _scaled(self, layer: int, shrinkage: float) -> tuple[np.ndarray, np.ndarray]:
        """Training and test features."""
        scale = self._axes[layer].scale(shrinkage)
        train, test = self._coordinates[layer]
        return train * scale, test * scale

    def _draw(self, count: int, draw: int) -> np.ndarray:
        """Indices of ``count`` samples of each class, outside the validation part."""
        rng = np.random.default_rng([self._seed, draw])
        labels = self._train.labels[self._fit]
        members = [self._fit[labels == label] for label in np.unique(labels)]
        return np.concatenate([rng.choice(m, count, replace=False) for m in members])

    def _score(self, accuracy: float, layer: int, std: float | None = None) -> Score:
        error = float(np.sqrt(accuracy * (1 - accuracy) / len(self._test.labels)))
        return Score(accuracy, error, layer, std)


def validation_split(labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices (int64, ascending) to fit on and to validate on, in the same shares per class.

    A class of two samples or more is in both parts; the only sample of a class is fitted on.
    """
    rng = np.random.default_rng(seed)
    held = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = min(max(1, round(VALIDATION_SHARE * len(members))), len(members) - 1)
        held.append(rng.permutation(members)[:count])
    validation = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(len(labels)), validation), validation


def _best(choices: Iterable[Choice], accuracy: Callable[[Choice], float]) -> Choice:
    """The choice with the highest accuracy, the first of equals."""
    return max(choices, key=accuracy)


def _regression(
    x: np.ndarray, labels: np.ndarray, tested: np.ndarray, expected: np.ndarray, c: float
) -> float:
    """Accuracy on ``tested`` after a fit on x; ``c`` is scikit-learn's inverse L2 strength."""
    with warnings.catch_warnings():
        # the last digits of the optimum do not move the accuracy, so that tol is a coarse one
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = LogisticRegression(C=c, tol=1e-3, max_iter=MAX_ITERATIONS).fit(x, labels)
    return float((model.predict(tested) == expected).mean())


def _voting(
    x: np.ndarray, labels: np.ndarray, tested: np.ndarray, expected: np.ndarray, neighbours: int
) -> float:
    """Accuracy on ``tested`` of the votes of its nearest rows of x."""
    classes, members = np.unique(labels, return_inverse=True)
    similarity = _unit(tested) @ _unit(x).T  # [N_test, N_train]
    count = min(neighbours, len(x))
    nearest = np.argpartition(-similarity, count - 1, axis=1)[:, :count]
    weight = np.exp((np.take_along_axis(similarity, nearest, axis=1) - 1) / TEMPERATURE)
    votes = np.zeros((len(tested), len(classes)))
    np.add.at(votes, (np.arange(len(tested))[:, None], members[nearest]), weight)
    return float((classes[votes.argmax(axis=1)] == expected).mean())


def _unit(x: np.ndarray) -> np.ndarray:
    """Rows of length 1; a row of zeros stays."""
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.finfo(np.float32).tiny)
