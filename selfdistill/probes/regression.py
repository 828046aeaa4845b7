"""Logistic regression: by L-BFGS where the samples fit into memory, else by stochastic descent."""

import math
import warnings
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

MAX_ITERATIONS = 100
BATCH = 512
MIN_STEPS, MIN_PASSES = 2_000, 5
MOMENTUM = 0.9
RATE = 0.1


class Classifier(Protocol):
    def predict(self, x: np.ndarray) -> np.ndarray:
        """Classes int64 [N] of rows [N, D]."""


def fit_regression(x: np.ndarray, labels: np.ndarray, c: float) -> Classifier:
    """Multinomial, by L-BFGS; ``c`` is scikit-learn's inverse L2 strength."""
    from sklearn.exceptions import ConvergenceWarning  # takes a second, which no start waits for
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        # the last digits of the optimum do not move the accuracy, so that tol is a coarse one
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(C=c, tol=1e-3, max_iter=MAX_ITERATIONS).fit(x, labels)


class _Linear:
    def __init__(self, weight: Tensor, bias: Tensor, classes: np.ndarray) -> None:
        self._weight, self._bias, self._classes = weight.numpy(), bias.numpy(), classes

    def predict(self, x: np.ndarray) -> np.ndarray:
        return self._classes[(x @ self._weight.T + self._bias).argmax(axis=1)]


def fit_by_descent(
    rows: Callable[[np.ndarray], np.ndarray],
    labels: np.ndarray,
    c: float,
    whitening: np.ndarray,
    seed: int,
) -> Classifier:
    """The same objective by minibatch descent with momentum, for sets that memory does not hold.

    Batches of 512 in an order drawn anew for each of five passes or more (2,000 steps at least),
    with a rate that falls to 0 along a cosine; what is returned is the mean over the last half.
    The penalty is taken by its proximal step, which no strength makes unstable.

    Args:
        rows: indices (int64, ascending) to features float32 [., D].
        labels: int64 [N].
        c: as in ``fit_regression``.
        whitening: float32 [D], factors that make the features equally large while it descends.
        seed: of the order.
    """
    classes, members = np.unique(labels, return_inverse=True)
    targets, total = torch.from_numpy(members), len(labels)
    weight, bias = torch.zeros(len(classes), len(whitening)), torch.zeros(len(classes))
    decay = torch.from_numpy(whitening**2) / (c * total)
    parameters = [weight, bias]
    speeds = [torch.zeros_like(p) for p in parameters]
    means = [torch.zeros_like(p) for p in parameters]
    steps = max(MIN_STEPS, MIN_PASSES * math.ceil(total / BATCH))
    rng, order, averaged = np.random.default_rng(seed), np.empty(0, dtype=np.int64), 0
    for step in range(steps):
        if len(order) < min(BATCH, total):
            order = rng.permutation(total)
        batch, order = np.sort(order[:BATCH]), order[BATCH:]
        x = torch.from_numpy(rows(batch) * whitening)
        error = F.softmax(x @ weight.T + bias, dim=1)
        error[torch.arange(len(x)), targets[batch]] -= 1
        rate = RATE * (1 + math.cos(math.pi * step / steps)) / 2
        late = step >= steps // 2
        averaged += late
        gradients = [error.T @ x / len(x), error.mean(dim=0)]
        for p, speed, gradient, mean in zip(parameters, speeds, gradients, means, strict=True):
            speed.mul_(MOMENTUM).add_(gradient)
            p.sub_(rate * speed)
            if p is weight:
                p.div_(1 + rate / (1 - MOMENTUM) * decay)
            if late:
                mean.add_((p - mean) / averaged)
    return _Linear(means[0] * torch.from_numpy(whitening), means[1], classes)
