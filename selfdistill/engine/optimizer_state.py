"""AdamW's state by the names of the parameters, as checkpoints keep it."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from selfdistill.engine.sharding import spread
from selfdistill.errors import UserError

_ADAM = {"exp_avg", "exp_avg_sq", "step"}
OTHER = "; the checkpoint is of another model, from whose weights init_from can start a run"


def pack_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """AdamW's state by parameter name: ``NAME/exp_avg``, ``NAME/exp_avg_sq``, ``NAME/step``.

    Parameters that never had a gradient have no entry.

    Args:
        optimizer: over parameters of ``model``.
        model: not wrapped.
    """
    return {
        f"{name}/{key}": value
        for name, parameter in model.named_parameters()
        if parameter in optimizer.state
        for key, value in optimizer.state[parameter].items()
    }


def unpack_optimizer(
    optimizer: torch.optim.Optimizer, model: nn.Module, tensors: Mapping[str, Tensor]
) -> None:
    """Put the state that ``pack_optimizer`` took back, bit by bit.

    Raises:
        UserError: names or shapes do not fit the model's; the optimizer is untouched.
    """
    parameters = dict(model.named_parameters())
    trained = {p for group in optimizer.param_groups for p in group["params"]}
    packed: dict[str, dict[str, Tensor]] = {}
    for full, value in tensors.items():
        name, _, key = full.rpartition("/")
        parameter = parameters.get(name)
        if parameter is None or parameter not in trained or key not in _ADAM:
            raise UserError(
                f"resume: optimizer state '{full}' belongs to no trained parameter{OTHER}"
            )
        shape = torch.Size() if key == "step" else parameter.shape
        if value.shape != shape:
            raise UserError(
                f"resume: optimizer state '{full}' has shape {[*value.shape]}, not {[*shape]}"
                f"{OTHER}"
            )
        packed.setdefault(name, {})[key] = value
    for name, entries in packed.items():
        if missing := _ADAM - entries.keys():
            raise UserError(f"resume: optimizer state '{name}/{min(missing)}' is missing{OTHER}")
    optimizer.state.clear()
    for name, entries in packed.items():
        parameter = parameters[name]
        optimizer.state[parameter] = {
            # the fused kernel reads the count on the device
            "step": entries["step"].to(parameter.device, copy=True),
            # the moments have the parameter's strides, as AdamW makes them
            **{key: _like(parameter, entries[key]) for key in ("exp_avg", "exp_avg_sq")},
        }


@torch.no_grad()
def _like(parameter: Tensor, value: Tensor) -> Tensor:
    return torch.empty_like(parameter, dtype=value.dtype).copy_(spread(value, parameter))
