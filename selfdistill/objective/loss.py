"""The regression loss."""

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
        predictions, targets: float32 [R, N, D].
        weight: float32 [R, N], 0 for places that only fill up the tensor.
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
