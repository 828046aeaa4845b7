"""Effective rank of a set of features."""

import torch
from torch import Tensor

ENTROPY_EPS = 1e-7  # the paper's constant for a type with 24 bits of mantissa


@torch.no_grad()
def effective_rank(x: Tensor, centre: bool = True) -> float:
    """RankMe (arXiv 2210.02885, equations 1 and 2): exp of the entropy of the singular values.

    It counts directions, softly: d equally strong ones give d, a single one gives 1. Compare it
    between states of one method only; untrained networks can score high.

    Args:
        x: float [N, D], one row per token or sample.
        centre: subtract the mean row first. The paper does not; without it a mean that all rows
            share counts as the strongest direction and hides the others.

    Returns:
        From 1 to min(N, D); 1 where all rows are equal; NaN where x is not finite.
    """
    x = x.float()
    if not torch.isfinite(x).all():
        return float("nan")
    if centre:
        x = x - x.mean(dim=0)
    values = torch.linalg.svdvals(x)
    shares = values / values.sum().clamp_min(torch.finfo(x.dtype).tiny) + ENTROPY_EPS
    return float(torch.exp(-(shares * shares.log()).sum()))
