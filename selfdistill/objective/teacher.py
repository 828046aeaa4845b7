"""The teacher: a moving average of the student that sees the whole input.

Source: data2vec 1.0 (arXiv 2202.03555), section 3.2 and equation 1.
"""

import contextlib
import copy
from collections.abc import Iterable, Iterator
from typing import Self

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from selfdistill.config import RunConfig
from selfdistill.errors import UserError
from selfdistill.modalities.backbone import Backbone, Backbones
from selfdistill.models.block import BlockOutput
from selfdistill.objective.targets import average_layers
from selfdistill.types import Batch, Tokens

Pair = tuple[Tensor, Tensor]


class Teacher(Backbones):
    """fp32 copy of the student, always in eval mode, never differentiated.

    Under autocast it multiplies in half precision, as the student does; what is summed up,
    normalised and averaged is float32.

    Args:
        student: what to copy, as far as each modality's ``teacher.scope`` says: all, all but the
            local encoder (the teacher reads the student's local features), or the shared blocks
            only (it reads the student's tokens as they enter these).
        config: of the run.
    """

    def __init__(self, student: Backbones, config: RunConfig) -> None:
        parts = config.parts()
        encoders = {
            name: copy.deepcopy(student.encoder(name))
            for name, part in parts.items()
            if part.teacher.scope != "blocks"
        }
        for name, encoder in encoders.items():
            if parts[name].teacher.scope == "all_but_local":
                encoder.local = nn.Identity()
        super().__init__(encoders, copy.deepcopy(student.trunk))
        self.parts = parts
        self.compat = config.compat
        self.requires_grad_(False)
        self.eval()
        self.copied = self._copied_parts()

    def _copied_parts(self) -> tuple[str, ...]:
        """Prefixes of the names of parameters that are copied, not averaged."""
        found = []
        names = [name for name, _ in self.named_parameters()]
        for modality, config in self.parts.items():
            for part in config.teacher.copied:
                prefix = part.replace("encoder", f"encoders.{modality}", 1)
                if not any(_within(name, prefix) for name in names):
                    known = sorted({".".join(name.split(".")[:3]) for name in names})
                    raise UserError(
                        f"teacher.copied: no part of the teacher is called '{part}'; parts are "
                        f"{', '.join(known).replace(f'encoders.{modality}', 'encoder')}"
                    )
                found.append(prefix)
        return tuple(found)

    def train(self, mode: bool = True) -> Self:
        return super().train(False)

    @torch.no_grad()
    def forward(
        self,
        name: str,
        batch: Batch,
        student_local: Tokens,
        student: Backbones,
        norms: list[Tensor] | None = None,
    ) -> Tensor:
        """Targets float32 [B, T, D] for every token.

        Args:
            name: the modality.
            batch: raw inputs.
            student_local: the student's local features of the same inputs, before masking.
            student: for what the teacher has not of its own.
            norms: is given ``StepOutput.teacher_norms``, block by block.
        """
        config = self.parts[name]
        encoder = (self if name in self.encoders else student).encoder(name)
        backbone = Backbone(encoder, self.trunk)
        if config.teacher.scope == "all":
            inputs = batch.inputs if batch.teacher_inputs is None else batch.teacher_inputs
            local = encoder.embed(inputs, batch.lengths)
        else:
            local = Tokens(student_local.x.detach(), student_local.padding)
        compat = config.compat.padding_in_target_statistics
        padding = None if compat else local.padding
        with _without_dropout(encoder):
            layers = backbone.layers(local)
            if norms is not None:
                layers = _measured(layers, local.padding, norms)
            return average_layers(layers, config.objective, config.model.depth, padding)

    @torch.no_grad()
    def update(self, student: Backbones, decay: float, taken: Tensor | None = None) -> None:
        """Move towards the student: t = decay t + (1 - decay) s, once per optimiser step.

        Parts named in ``teacher.copied`` become the student's. A decay of 1 freezes the rest.

        Args:
            taken: bool scalar on the device; False if the student did not move, and the teacher
                is to stay as well. None: it did.
        """
        copied, averaged = ([(_local(t), _local(s)) for t, s in p] for p in self._pairs(student))
        if copied:
            torch._foreach_copy_([t for t, _ in copied], [s for _, s in copied])
        if decay < 1 and averaged:
            weight = torch.full((), 1 - decay, device=averaged[0][0].device)
            if taken is not None:
                weight = weight * taken
            weights = [weight] * len(averaged)
            torch._foreach_lerp_([t for t, _ in averaged], [s for _, s in averaged], weights)
        if self.compat.averaged_index_buffers:
            self._average_index_buffers(student, decay)

    @torch.no_grad()
    def distance(self, student: Backbones) -> float:
        """Norm of the averaged parameters' difference to the student's, over the norm of the
        student's; 0 where the teacher is a mere copy."""
        _, averaged = self._pairs(student)
        if not averaged:
            return 0.0
        student_parameters = [s for _, s in averaged]
        apart = torch._foreach_sub([t for t, _ in averaged], student_parameters)
        norms = [_norm(tensors) for tensors in (apart, student_parameters)]
        return norms[0] / max(norms[1], 1e-12)

    def _pairs(self, student: Backbones) -> tuple[list[Pair], list[Pair]]:
        """(teacher's, student's) parameters that are copied, and those that are averaged."""
        theirs = dict(student.named_parameters())
        copied: list[Pair] = []
        averaged: list[Pair] = []
        for name, ours in self.named_parameters():
            part = copied if any(_within(name, c) for c in self.copied) else averaged
            part.append((ours, theirs[name]))
        return copied, averaged

    def _average_index_buffers(self, student: Backbones, decay: float) -> None:
        theirs = dict(student.named_buffers())
        for name, index in self.named_buffers():
            if not index.is_floating_point():
                index.copy_(decay * index + (1 - decay) * theirs[name])


def _measured(
    layers: Iterable[BlockOutput], padding: Tensor | None, norms: list[Tensor]
) -> Iterator[BlockOutput]:
    """The same layers; the lengths of their vectors go into ``norms``, but for padding."""
    for layer in layers:
        length = torch.linalg.vector_norm(layer.x.float(), dim=-1)  # [B, T]
        norms.append((length if padding is None else length.masked_fill(padding, 0)).sum())
        yield layer


def _local(tensor: Tensor) -> Tensor:
    """This process's share; the student's and the teacher's shards are cut alike."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _norm(tensors: Iterable[Tensor]) -> float:
    norm = torch.nn.utils.get_total_norm(tensors)
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


def _within(name: str, part: str) -> bool:
    return name == part or name.startswith(part + ".")


@contextlib.contextmanager
def _without_dropout(encoder: nn.Module) -> Iterator[None]:
    """A student's encoder that the teacher uses must not drop anything there."""
    training = encoder.training
    encoder.eval()
    try:
        yield
    finally:
        encoder.train(training)
