"""The regression loss and the moments that the health guard reads."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from selfdistill.config import ObjectiveConfig


def loss_factor(objective: ObjectiveConfig, width: int) -> float:
    """Factor on the loss of one token, which is summed over the width."""
    if objective.loss_scale == "rsqrt_width":
        return width**-0.5
    if objective.loss_scale == "mean":
        return 1.0 / width
    return float(objective.loss_scale)


def regression_loss(
    predictions: Tensor, targets: Tensor, weight: Tensor, objective: ObjectiveConfig
) -> Tensor:
    """Summed loss of all masked tokens (data2vec 1.0, equation 3); divide by their number.

    Args:
        predictions, targets: float32 [B, N, D].
        weight: float32 [B, N], 0 for places that only fill up the tensor.
        objective: ``loss_beta`` and ``loss_scale``.

    Returns:
        float32 scalar.
    """
    return (_loss_of_each(predictions, targets, objective) * weight).sum()


def class_loss(
    prefix: Tensor, targets: Tensor, padding: Tensor | None, objective: ObjectiveConfig
) -> Tensor:
    """Summed loss of all rows' last prefix token, which predicts the mean of all targets of its
    sample (data2vec 2.0, section 3.3), times ``cls_loss``.

    Args:
        prefix: float32 [R, P, D], the student's output.
        targets: float32 [B, T, D].
        padding: bool [B, T], True for tokens outside the mean; None: none.
        objective: ``cls_loss``, ``loss_beta`` and ``loss_scale``.

    Returns:
        float32 scalar.
    """
    if padding is None:
        mean = targets.mean(dim=1)
    else:
        valid = (~padding)[..., None].to(targets.dtype)
        mean = (targets * valid).sum(dim=1) / valid.sum(dim=1)
    mean = mean.repeat_interleave(len(prefix) // len(mean), dim=0)  # [R, D]
    return _loss_of_each(prefix[:, -1], mean, objective).sum() * objective.cls_loss


def _loss_of_each(predictions: Tensor, targets: Tensor, objective: ObjectiveConfig) -> Tensor:
    """[..., D] to [...]."""
    if objective.loss_beta == 0:
        loss = F.mse_loss(predictions, targets, reduction="none")
    else:
        loss = F.smooth_l1_loss(predictions, targets, reduction="none", beta=objective.loss_beta)
    return loss.sum(-1) * loss_factor(objective, predictions.shape[-1])


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

    def plus(self, other: "Moments") -> "Moments":
        return Moments(*(a + b for a, b in zip(self, other, strict=True)))

    def covariance(self) -> Tensor:
        """Unbiased covariance [D, D], float64."""
        size = self.size.clamp(min=1)
        mean = self.total / size
        return (self.outer - size * mean.outer(mean)) / (size - 1).clamp(min=1)

    def std(self) -> float:
        """Mean over channels of the deviation, sqrt(variance + 1e-6) as fairseq logs it."""
        variance = self.covariance().diagonal().clamp(min=0)
        return float((variance + 1e-6).sqrt().mean())

    def effective_rank(self) -> float:
        """RankMe (arXiv 2210.02885, equation 1) of the centred vectors: exp of the entropy of
        their normalised singular values."""
        values = torch.linalg.eigvalsh(self.covariance()).clamp(min=0).sqrt()
        share = values / values.sum().clamp(min=1e-12) + 1e-7
        return float(torch.exp(-(share * share.log()).sum()))
