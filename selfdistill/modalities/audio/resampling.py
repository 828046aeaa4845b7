"""Sound at another sampling rate."""

from fractions import Fraction

import numpy as np


def resample(values: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """Sound [n] of one channel at ``wanted`` Hz in place of ``rate``, by a polyphase filter."""
    if not len(values):
        return values
    from scipy.signal import resample_poly  # takes a second, which no start waits for

    ratio = Fraction(wanted, rate)
    resampled: np.ndarray = resample_poly(values, ratio.numerator, ratio.denominator)
    return resampled
