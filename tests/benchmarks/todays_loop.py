"""data2vec 1.0 as people write it today around a model of transformers, in eager PyTorch.

The teacher is a deep copy in eval mode that runs the whole model and hands out the states behind
all its layers, of which the top ones are kept, normalised and averaged. The student reads masked
input, a head predicts at masked places. torch's AdamW stands at its defaults but for the four
numbers of the config, and the average is taken parameter by parameter. Sizes, dropout and the
masked places are those of our config and batch.
"""

import copy
from collections.abc import Sequence
from functools import reduce
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from selfdistill.config import RunConfig
from selfdistill.modalities.base import load_modality
from selfdistill.modalities.image.pixels import normalised
from selfdistill.types import Batch


class TodaysLoop:
    """
    Args:
        config: of a run of one modality; transformers must have a class for its encoder.
        batch: with masks. Where a sample has M of them, the student reads it M times, the teacher
            once.
        attention: eager or sdpa.
        device: for all of it. Precision, and whether the models are compiled, is the config's.
    """

    def __init__(
        self, config: RunConfig, batch: Batch, attention: str = "eager", device: str = "cpu"
    ) -> None:
        batch = batch.to(torch.device(device))
        assert batch.masks is not None
        self.config, self.device = config, device
        self.inputs, self.masked = batch.inputs, batch.masks.masked
        if config.modality == "image":  # what their processors give
            mean, std = torch.tensor(config.input.mean), torch.tensor(config.input.std)
            self.inputs = normalised(self.inputs, mean.to(device), std.to(device))
        self.num_masks = len(self.masked) // len(self.inputs)
        self.prefix = 1 if config.modality == "image" else 0  # the class token
        self.student = _model(config, attention).train().to(device)
        self.teacher = copy.deepcopy(self.student).eval().requires_grad_(False)
        self.head = _head(config).to(device)
        if config.train.compile:
            for model in (self.student, self.teacher):
                model.compile()
        self.learned = [*self.student.parameters(), *self.head.parameters()]
        optim = config.optim
        self.optimizer = torch.optim.AdamW(
            self.learned,
            lr=optim.lr,
            betas=optim.betas,
            eps=optim.eps,
            weight_decay=optim.weight_decay,
        )

    def step(self) -> None:
        optim, decay = self.config.optim, self.config.teacher.ema_decay
        with torch.autocast(self.device, torch.bfloat16, self.config.train.precision == "bf16"):
            loss = self.loss()
        loss.backward()
        if optim.clip_norm:
            nn.utils.clip_grad_norm_(self.learned, optim.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            pairs = zip(self.teacher.parameters(), self.student.parameters(), strict=True)
            for theirs, ours in pairs:
                theirs.mul_(decay).add_(ours, alpha=1 - decay)

    def loss(self) -> Tensor:
        """Mean over masked places and channels."""
        targets = self._targets()
        x = self.student(**self._masked_inputs()).last_hidden_state[:, self.prefix :]
        predictions, beta = self.head(x[self.masked]), self.config.objective.loss_beta
        if beta:
            return F.smooth_l1_loss(predictions, targets[self.masked], beta=beta)
        return F.mse_loss(predictions, targets[self.masked])

    @torch.no_grad()
    def _targets(self) -> Tensor:
        """[R, T, D]."""
        objective = self.config.objective
        inputs = {_INPUTS[self.config.modality]: self.inputs}
        states = self.teacher(**inputs, output_hidden_states=True).hidden_states
        top = [state[:, self.prefix :] for state in states[-objective.average_top_k_layers :]]
        normed = [_normalise(state, objective.layer_norms) for state in top]
        targets = _normalise(reduce(torch.add, normed) / len(normed), objective.target_norms)
        return targets.repeat_interleave(self.num_masks, dim=0)

    def _masked_inputs(self) -> dict[str, Tensor]:
        modality = self.config.modality
        inputs = self.inputs.repeat_interleave(self.num_masks, dim=0)
        if modality == "text":
            return {"input_ids": inputs.masked_fill(self.masked, self.config.encoder.mask_id)}
        places = "bool_masked_pos" if modality == "image" else "mask_time_indices"
        return {_INPUTS[modality]: inputs, places: self.masked}


_INPUTS = {"image": "pixel_values", "audio": "input_values", "text": "input_ids"}


def load_classes() -> None:
    """transformers loads the code of a model when its class is first asked for."""
    import transformers

    for modality in _INPUTS:
        hub = load_modality(modality).hub
        assert hub is not None
        getattr(transformers, hub.architecture)


def _model(config: RunConfig, attention: str) -> Any:
    import transformers

    hub = load_modality(config.modality).hub
    assert hub is not None
    fields = {**hub.config(config), "use_mean_pooling": False}  # the image model's closing norm
    model = getattr(transformers, hub.architecture)
    settings = model.config_class(**fields, attn_implementation=attention)
    return model(settings, **({"add_pooling_layer": False} if config.modality == "text" else {}))


def _head(config: RunConfig) -> nn.Module:
    """Linear layers with GELU between, twice as wide inside."""
    width, layers = config.model.width, config.objective.head_layers
    widths = [width, *[2 * width] * (layers - 1), width]
    parts: list[nn.Module] = []
    for inner, outer in pairwise(widths):
        parts += [nn.Linear(inner, outer), nn.GELU()]
    return nn.Sequential(*parts[:-1])


def _normalise(x: Tensor, kinds: Sequence[str]) -> Tensor:
    """Without learned gains: each vector over its channels, or each channel over time."""
    for kind in kinds:
        if kind == "layer":
            x = F.layer_norm(x, x.shape[-1:])
        else:
            x = F.instance_norm(x.transpose(1, 2)).transpose(1, 2)
    return x
