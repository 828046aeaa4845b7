"""Moments of targets and predictions, and what they tell about a run's health."""

from typing import NamedTuple

import torch
from torch import Tensor

NEGLIGIBLE = 1e-6


class Moments(NamedTuple):
    """First and second moments of vectors, to be added over batches and processes.

    Attributes:
        size: number of vectors, float64 scalar.
        total: their sum, float64 [D].
        outer: sum of their outer products, float64 [D, D].
    """

    size: Tensor
    total: Tensor
    outer: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, x: Tensor, weight: Tensor) -> "Moments":
        """Of x [B, N, D] where weight [B, N] is 1.

        The products are taken about the mean: where it is much larger than the deviation, as in a
        collapse, float32 would lose the deviation in them.
        """
        with torch.autocast(x.device.type, enabled=False):
            weight = weight.flatten()[:, None]
            x = x.detach().float().flatten(0, 1)
            mean = (x * weight).sum(0) / weight.sum().clamp(min=1)
            centred = (x - mean) * weight
            size, mean, rest = weight.sum().double(), mean.double(), centred.sum(0).double()
            cross = mean.outer(rest)  # rest is what rounding leaves of a sum that should be 0
            products = (centred.T @ centred).double() + cross + cross.T + size * mean.outer(mean)
            return cls(size, rest + size * mean, products)

    def covariance(self) -> Tensor:
        """Unbiased covariance [D, D], float64."""
        size = self.size.clamp(min=1)
        mean = self.total / size
        return (self.outer - size * mean.outer(mean)) / (size - 1).clamp(min=1)

    def std(self) -> float:
        """Mean over channels of the deviation, sqrt(variance + 1e-6) as fairseq logs it."""
        variance = self.covariance().diagonal().clamp(min=0)
        return float((variance + 1e-6).sqrt().mean())

    def spectrum(self) -> Tensor:
        """Eigenvalues of the covariance [D], float64, the largest first."""
        return torch.linalg.eigvalsh(self.covariance()).clamp(min=0).flip(0)

    def cosine(self) -> float:
        """Mean product of two of the vectors over their mean square: for vectors of one length the
        average cosine between them. 1: all are the same; NaN: all are zero."""
        size = self.size.clamp(min=1)
        return float((self.total / size).square().sum() / (self.outer.trace() / size))


def effective_rank(spectrum: Tensor) -> float:
    """RankMe (arXiv 2210.02885, equation 1) of centred vectors: exp of the entropy of their
    normalised singular values, the roots of ``spectrum`` [D]."""
    values = spectrum.sqrt()
    share = values / values.sum().clamp(min=1e-12) + 1e-7
    return float(torch.exp(-(share * share.log()).sum()))


def spectral_slope(spectrum: Tensor) -> float:
    """The alpha of alpha-ReQ (NeurIPS 2022, section 3): eigenvalue i falls as i ** -alpha.

    The slope of a line through the logarithms, where point i weighs 1/i. Eigenvalues below
    ``NEGLIGIBLE`` of the largest are left out; NaN where fewer than three are left.

    Args:
        spectrum: float64 [D], the largest first.
    """
    values = spectrum[spectrum > NEGLIGIBLE * spectrum[0]]
    if len(values) < 3:
        return float("nan")
    rank = torch.arange(1, len(values) + 1, dtype=values.dtype, device=values.device)
    weight = (1 / rank) / (1 / rank).sum()
    x, y = rank.log(), values.log()
    x, y = x - (weight * x).sum(), y - (weight * y).sum()
    return float(-(weight * x * y).sum() / (weight * x * x).sum())


@torch.no_grad()
def variance_over_samples(x: Tensor, padding: Tensor | None) -> Tensor:
    """How much the samples of a batch differ at one place, on average over places and channels.

    Targets may vary from place to place and still say nothing of the sample.

    Args:
        x: float32 [B, T, D].
        padding: bool [B, T], True for tokens that do not count; None: all count.

    Returns:
        Unbiased variance, float32 scalar; NaN where no place has two samples.
    """
    valid = torch.ones_like(x[..., :1]) if padding is None else (~padding)[..., None].to(x.dtype)
    count = valid.sum(0)  # [T, 1]
    mean = (x * valid).sum(0) / count.clamp(min=1)
    variance = ((x - mean).square() * valid).sum(0) / (count - 1).clamp(min=1)  # [T, D]
    several = (count > 1).to(x.dtype)
    return (variance.mean(-1, keepdim=True) * several).sum() / several.sum()
