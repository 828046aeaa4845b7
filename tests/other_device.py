"""A device in host memory that stands in for a GPU where there is none.

Its operators are the CPU's, with the same numbers; but its tensors do not mix with those of the
CPU, numpy cannot read them, and what makes the host wait for them is noted.
"""

import json
import threading
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from selfdistill.engine import trainer
from selfdistill.engine.trainer import Trainer

NAME = "other"
WAITING = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
"""Of operators such as ``item`` and ``nonzero``, whose result or its shape the host has to know."""
waits: list[str] = []
"""Operators that made the host wait so far."""


class There(Tensor):
    """A tensor on the device; ``here`` has its numbers."""

    here: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, here: Tensor) -> "There":
        made: There = Tensor._make_wrapper_subclass(
            cls,
            here.shape,
            strides=here.stride(),
            storage_offset=here.storage_offset(),
            dtype=here.dtype,
            device=torch.device(NAME, 0),
        )
        made.here = here
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def __repr__(self, **_: Any) -> str:
        return f"There({self.here!r})"

    def numpy(self, **_: Any) -> Any:
        raise TypeError("numpy cannot read what is on another device")

    def tolist(self) -> Any:
        return self.cpu().tolist()


class _Dispatch(TorchDispatchMode):
    """Makes tensors there when they are asked for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        concerned = _is_ours(kwargs.get("device")) or _theirs((args, kwargs))
        return _run(func, args, kwargs) if concerned else func(*args, **kwargs)


def _is_ours(device: Any) -> bool:
    return device is not None and torch.device(device).type == NAME


def _theirs(values: Any) -> list[There]:
    return [value for value in tree_flatten(values)[0] if isinstance(value, There)]


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """An operator that has to do with the device."""
    name, where = func.overloadpacket.__name__, kwargs.get("device")
    theirs, moves = _theirs((args, kwargs)), name in ("copy_", "_to_copy")
    if name == "copy_":
        goes_there = isinstance(args[0], There)
    else:
        goes_there = bool(theirs) if where is None else _is_ours(where)
    given = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
    foreign = [[*g.shape] for g in given if g.dim() and not isinstance(g, There)]
    if theirs and foreign and not moves:
        raise RuntimeError(f"{func} has tensors of two devices; on the CPU are {foreign}")
    if (moves and not goes_there) or _depends_on_values(func, args):
        waits.append(str(func))
    kwargs = {key: value for key, value in kwargs.items() if key not in ("device", "pin_memory")}
    if where is not None:
        kwargs["device"] = "cpu"
    found = func(*tree_map(_here, args), **tree_map(_here, kwargs))
    changed = {id(tensor.here): tensor for tensor in theirs}  # an operator in place gives it back

    def there(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return changed[id(value)] if id(value) in changed else There(value)

    return tree_map(there, found) if goes_there else found


def _here(value: Any) -> Any:
    return value.here if isinstance(value, There) else value


def _depends_on_values(func: Any, args: Any) -> bool:
    """Whether the host has to know numbers on the device."""
    if func.overloadpacket.__name__ in ("index", "index_put", "index_put_", "_index_put_impl_"):
        return any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])
    return bool(WAITING & {*func.tags})


class _OnItsWay:
    """In place of ``Late``, whose reading waits for the step before only."""

    def __init__(self, numbers: Tensor) -> None:
        self._numbers = _here(numbers)

    def read(self) -> list[float]:
        found: list[float] = self._numbers.tolist()
        return found


def install(log: Path) -> None:
    """Make the program use it, in this process for good.

    Args:
        log: where each step of training adds a line, a list of what made the host wait in it.
    """
    backend_registration._setup_privateuseone_for_python_backend(NAME)
    module = getattr(torch, NAME)
    module.get_amp_supported_dtype = lambda: [torch.bfloat16]
    module._is_in_bad_fork = lambda: False
    module.manual_seed_all = lambda seed: None  # its numbers are drawn as the CPU's
    torch.__future__.set_swap_module_params_on_conversion(True)  # ``data`` keeps its device
    make, run, step = torch.tensor, threading.Thread.run, Trainer.step

    def made(data: Any, device: Any = None, **kwargs: Any) -> Tensor:
        tensor = make(data, **kwargs)
        return tensor if device is None else tensor.to(device)

    def in_thread(thread: threading.Thread) -> None:
        with _Dispatch():
            run(thread)

    def noted(self: Trainer, *parts: Any) -> None:
        waits.clear()
        step(self, *parts)
        with log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(waits) + "\n")

    torch.tensor, threading.Thread.run, Trainer.step = made, in_thread, noted  # type: ignore
    Accelerator.device = property(lambda self: torch.device(NAME, 0))  # type: ignore
    trainer.Late = _OnItsWay  # type: ignore
    _Dispatch().__enter__()
