"""Features in the scale of their principal axes, where a linear classifier is quickly fitted."""

import numpy as np

MAX_WIDTH = 3072
"""Wider features stay standardised only: their axes would cost minutes and gigabytes."""
MIN_VARIANCE = 1e-6
"""Axes with less, in units of a standardised feature's variance, are rounding errors of float32."""


class PrincipalAxes:
    """Standardisation and principal axes of one set of features, found without labels.

    Mean-pooled features of an encoder often have nearly all their variance in a few directions
    and the label in the others. Logistic regression with an L2 penalty on standardised features
    then stops far from its optimum and reads an encoder, the untrained one most of all, as worse
    than it is. Scaling each axis by sqrt((1 + shrinkage) / (variance + shrinkage)) mends that: a
    small shrinkage whitens the features, a large one leaves them standardised.

    Args:
        x: float32 [N, D].
    """

    def __init__(self, x: np.ndarray) -> None:
        from sklearn.preprocessing import StandardScaler  # takes a second, which no start waits for

        self._scaler = StandardScaler().fit(x)
        self._axes: np.ndarray | None = None
        self._variance = np.zeros(1, dtype=np.float32)
        if x.shape[1] <= MAX_WIDTH:
            x = self._scaler.transform(x)
            variance, axes = np.linalg.eigh(x.T @ x / len(x))
            kept = variance > MIN_VARIANCE
            kept[-1] = True  # of a collapsed encoder there is nothing else
            self._variance, self._axes = variance[kept], axes[:, kept]

    def coordinates(self, x: np.ndarray) -> np.ndarray:
        """Features x [N, D] along the axes, float32 [N, up to D]."""
        x = self._scaler.transform(x)
        return x if self._axes is None else x @ self._axes

    def scale(self, shrinkage: float) -> np.ndarray:
        """The factor of each coordinate, float32 [up to D].

        Args:
            shrinkage: in units of the variance of a standardised feature, which is 1.
        """
        return np.sqrt((1 + shrinkage) / (self._variance + shrinkage)).astype(np.float32)

    def white(self) -> np.ndarray:
        """The factor that makes all coordinates equally large, float32 [up to D]."""
        if self._axes is None:
            return np.ones(len(self._scaler.scale_), dtype=np.float32)
        return (self._variance.clip(MIN_VARIANCE) ** -0.5).astype(np.float32)
