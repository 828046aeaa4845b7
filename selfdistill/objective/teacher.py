"""The teacher: a moving average of the student that sees the whole input.

Source: data2vec 1.0 (arXiv 2202.03555), section 3.2 and equation 1.
"""

import copy
from typing import Self

import torch
from torch import Tensor, nn

from selfdistill.config import RunConfig
from selfdistill.errors import UserError
from selfdistill.modalities.backbone import Backbone
from selfdistill.objective.targets import average_layers
from selfdistill.types import Batch, Tokens

Pair = tuple[Tensor, Tensor]


class Teacher(nn.Module):
    """fp32 copy of the student's backbone, always in eval mode, never differentiated.

    Args:
        student: the backbone to copy. Unless ``teacher.own_local_encoder``, its local encoder is
            shared: the teacher reads the student's local features.
        config: of the run.
    """

    def __init__(self, student: Backbone, config: RunConfig) -> None:
        super().__init__()
        self.objective = config.objective
        self.depth = config.model.depth
        self.own_local = config.teacher.own_local_encoder
        self.copied = tuple(config.teacher.copied)
        self.compat = config.compat
        self.backbone = copy.deepcopy(student)
        if not self.own_local:
            self.backbone.encoder.local = nn.Identity()
        self.requires_grad_(False)
        self.eval()
        names = [name for name, _ in self.backbone.named_parameters()]
        for part in self.copied:
            if not any(_within(name, part) for name in names):
                parts = sorted({".".join(name.split(".")[:2]) for name in names})
                raise UserError(
                    f"teacher.copied: no part of the teacher is called '{part}'; "
                    f"parts are {', '.join(parts)}"
                )

    def train(self, mode: bool = True) -> Self:
        return super().train(False)

    @torch.no_grad()
    def forward(self, batch: Batch, student_local: Tokens) -> Tensor:
        """Targets float32 [B, T, D] for every token.

        Args:
            batch: raw inputs.
            student_local: the student's local features of the same inputs, before masking.
        """
        with torch.autocast(student_local.x.device.type, enabled=False):
            if self.own_local:
                inputs = batch.inputs if batch.teacher_inputs is None else batch.teacher_inputs
                local = self.backbone.encoder.embed(inputs, batch.lengths)
            else:
                local = Tokens(student_local.x.detach().float(), student_local.padding)
            padding = None if self.compat.padding_in_target_statistics else local.padding
            layers = self.backbone.layers(local)
            return average_layers(layers, self.objective, self.depth, padding)

    @torch.no_grad()
    def update(self, student: Backbone, decay: float) -> None:
        """Move towards the student: t = decay t + (1 - decay) s, once per optimiser step.

        Parts named in ``teacher.copied`` become the student's. A decay of 1 freezes the rest.
        """
        copied, averaged = self._pairs(student)
        if copied:
            torch._foreach_copy_([t for t, _ in copied], [s for _, s in copied])
        if decay < 1:
            torch._foreach_lerp_([t for t, _ in averaged], [s for _, s in averaged], 1 - decay)
        if self.compat.averaged_index_buffers:
            self._average_index_buffers(student, decay)

    @torch.no_grad()
    def distance(self, student: Backbone) -> float:
        """Norm of the averaged parameters' difference to the student's, over the norm of the
        student's; 0 where the teacher is a mere copy."""
        _, averaged = self._pairs(student)
        student_parameters = [s for _, s in averaged]
        apart = torch._foreach_sub([t for t, _ in averaged], student_parameters)
        norms = [
            torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors)))
            for tensors in (apart, student_parameters)
        ]
        return float(norms[0] / norms[1].clamp(min=1e-12))

    def _pairs(self, student: Backbone) -> tuple[list[Pair], list[Pair]]:
        """(teacher's, student's) parameters that are copied, and those that are averaged."""
        theirs = dict(student.named_parameters())
        copied: list[Pair] = []
        averaged: list[Pair] = []
        for name, ours in self.backbone.named_parameters():
            part = copied if any(_within(name, c) for c in self.copied) else averaged
            part.append((ours, theirs[name]))
        return copied, averaged

    def _average_index_buffers(self, student: Backbone, decay: float) -> None:
        theirs = dict(student.named_buffers())
        for name, index in self.backbone.named_buffers():
            if not index.is_floating_point():
                index.copy_(decay * index + (1 - decay) * theirs[name])


def _within(name: str, part: str) -> bool:
    return name == part or name.startswith(part + ".")
