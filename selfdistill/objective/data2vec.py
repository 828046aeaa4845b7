"""The module that is trained: student, predictors and teacher in one."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from selfdistill.config import RunConfig
from selfdistill.modalities.backbone import build_backbones
from selfdistill.objective.loss import class_loss, regression_loss
from selfdistill.objective.moments import Moments, variance_over_samples
from selfdistill.objective.predictor import build_predictor
from selfdistill.objective.teacher import Teacher
from selfdistill.step_parts import as_part
from selfdistill.types import Batch


class StepOutput(NamedTuple):
    """What one forward pass gives for one modality.

    Attributes:
        loss: sum over the masked tokens, float32 scalar; divide by ``tokens``.
        tokens: number of masked tokens over all masks, float32 scalar.
        valid: number of tokens that are no padding over all masks, float32 scalar.
        targets, predictions: moments at the masked tokens.
        error: squared distance of predictions from targets, summed over the masked tokens, float32
            scalar.
        sample_variance: of the targets, see ``variance_over_samples``.
        teacher_norms: float32, for each of the teacher's blocks up to the last target the lengths
            of the vectors behind it, summed over the same tokens as ``valid``.
    """

    loss: Tensor
    tokens: Tensor
    valid: Tensor
    targets: Moments
    predictions: Moments
    error: Tensor
    sample_variance: Tensor
    teacher_norms: Tensor


class Data2Vec(nn.Module):
    """data2vec 1.0 and 2.0 (arXiv 2202.03555, 2212.07525): the student regresses the teacher at
    masked tokens.

    The feature encoder and the teacher run once per sample, the student once per mask.
    """

    def __init__(self, config: RunConfig) -> None:
        super().__init__()
        self.parts = config.parts()
        self.student = build_backbones(config)
        self.predictors = nn.ModuleDict(
            {
                name: build_predictor(part, self.student.encoder(name))
                for name, part in self.parts.items()
            }
        )
        self.teacher = Teacher(self.student, config)

    def forward(self, batches: Mapping[str, Batch]) -> dict[str, StepOutput]:
        """One batch with masks of every modality of the run, by name."""
        return {name: self._modality(name, batch) for name, batch in batches.items()}

    def _modality(self, name: str, batch: Batch) -> StepOutput:
        objective, compat, masks = self.parts[name].objective, self.parts[name].compat, batch.masks
        assert masks is not None, "training batches carry masks"
        student = self.student[name]
        with as_part("feature_encoder"):
            local = student.encoder.embed(batch.inputs, batch.lengths)
        norms: list[Tensor] = []
        with as_part("teacher"):
            every = self.teacher(name, batch, local, self.student, norms)  # [B, T, D]
            targets = masks.gather(every)  # [R, N, D]
        prediction = self.predictors[name](student, local, masks)
        with as_part("loss"):
            predictions = prediction.masked.float()
            tokens = masks.count()
            loss = regression_loss(predictions, targets, masks.weight, objective)
            if objective.cls_loss:
                summed = class_loss(prediction.prefix.float(), every, local.padding, objective)
                rows = 1 if compat.summed_class_loss else len(masks.masked)
                loss = loss + summed * tokens / rows
        with as_part("figures"), torch.no_grad():
            seen = local.x.shape[0] * local.x.shape[1]
            valid = seen if local.padding is None else (~local.padding).sum()
            num_masks = len(masks.masked) // len(local.x)
            error = ((predictions - targets).square().sum(-1) * masks.weight).sum()
            return StepOutput(
                loss=loss,
                tokens=tokens,
                valid=torch.zeros_like(tokens) + valid * num_masks,
                targets=Moments.of(targets, masks.weight),
                predictions=Moments.of(predictions, masks.weight),
                error=error,
                sample_variance=variance_over_samples(every, local.padding),
                teacher_norms=torch.stack(norms) * num_masks,
            )

    def update_teacher(self, decay: float, taken: Tensor | None = None) -> None:
        """Move the teacher after an optimiser step; see ``Teacher.update``."""
        self.teacher.update(self.student, decay, taken)
