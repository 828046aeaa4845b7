"""The module that is trained: student, head and teacher in one."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from selfdistill.config import RunConfig
from selfdistill.modalities.backbone import build_backbone
from selfdistill.modalities.base import Modality
from selfdistill.objective.head import build_head
from selfdistill.objective.loss import Moments, regression_loss
from selfdistill.objective.teacher import Teacher
from selfdistill.types import Batch


class StepOutput(NamedTuple):
    """What one forward pass gives.

    Attributes:
        loss: sum over the masked tokens, float32 scalar; divide by ``tokens``.
        tokens: number of masked tokens, float32 scalar.
        masked_share: masked tokens over valid ones, float32 scalar.
        targets, predictions: moments at the masked tokens.
    """

    loss: Tensor
    tokens: Tensor
    masked_share: Tensor
    targets: Moments
    predictions: Moments


class Data2Vec(nn.Module):
    """data2vec 1.0 (arXiv 2202.03555): the student regresses the teacher at masked tokens."""

    def __init__(self, modality: Modality, config: RunConfig) -> None:
        super().__init__()
        self.objective = config.objective
        self.student = build_backbone(modality, config)
        self.head = build_head(config.objective, config.model.width)
        self.teacher = Teacher(self.student, config)

    def forward(self, batch: Batch) -> StepOutput:
        """One batch with masks."""
        masks = batch.masks
        assert masks is not None, "training batches carry masks"
        local = self.student.encoder.embed(batch.inputs, batch.lengths)
        targets = masks.gather(self.teacher(batch, local))  # [B, N, D]
        hidden = masks.gather(self.student(local, masks))  # [B, N, D]
        predictions = self.head(hidden).float()
        with torch.no_grad():
            valid = masks.masked.numel() if local.padding is None else (~local.padding).sum()
        return StepOutput(
            loss=regression_loss(predictions, targets, masks.weight, self.objective),
            tokens=masks.count(),
            masked_share=masks.count() / valid,
            targets=Moments.of(targets, masks.weight),
            predictions=Moments.of(predictions, masks.weight),
        )

    def update_teacher(self, decay: float) -> None:
        """Move the teacher after an optimiser step."""
        self.teacher.update(self.student, decay)
