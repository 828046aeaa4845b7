"""Read what ``torch.save`` wrote without running, or importing, anything that the file names.

The original authors pickle settings objects beside their tensors. A pickle can name any function
that is installed and have it called, so plain unpickling trusts the file with the machine, and
``torch.load(weights_only=True)`` refuses it. Here the names that tensors and plain Python data
need are known, and an inert ``Placeholder`` stands for every other one.

How much memory a file may ask for is not limited.
"""

import copyreg
import pickle
import tarfile
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from selfdistill.errors import UserError

ZIP = b"PK\x03\x04"
BEFORE_TORCH_1_6 = torch.serialization.MAGIC_NUMBER.to_bytes(10, "little")
ARCHIVE = "is an archive; unpack it and name the checkpoint inside"
HEAD = 512  # bytes, enough to tell the formats apart


class Placeholder(dict[Any, Any]):
    """What a file holds of an object whose class is not loaded, e.g. ``argparse.Namespace``.

    Its items are the object's attributes by name, and its own items if it is like a dict. What a
    constructor got and the elements of lists are dropped.
    """

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__()

    def __call__(self, *args: object) -> "Placeholder":
        return Placeholder()

    def __setstate__(self, state: object) -> None:
        # a class with __slots__ gives a pair
        for part in state if isinstance(state, tuple) else (state,):
            if isinstance(part, dict):
                self.update(part)

    def extend(self, elements: Iterable[object]) -> None:
        """Of a list's subclass."""

    # an enum's member can be a key
    __hash__ = object.__hash__  # type: ignore[assignment]


class _Unreadable(Exception):
    """The message goes on after the file's path."""


class _Sealed:
    """A function or a storage that the pickle can pass on and call, but not change."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __call__(self, *args: Any) -> Any:
        return self.value(*args)

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("it changes what is not its own")


def _tensor(
    storage: _Sealed,
    offset: int,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    requires_grad: bool = False,
    hooks: object = None,
    metadata: dict[str, bool] | None = None,
) -> Tensor:
    return torch._utils._rebuild_tensor_v2(
        storage.value, offset, size, stride, False, OrderedDict(), metadata
    )


def _parameter(data: Tensor, requires_grad: bool, hooks: object, state: object = None) -> Tensor:
    return data


def _tensor_with_attributes(
    rebuild: Callable[..., Any], kind: object, args: tuple[Any, ...], state: object
) -> Any:
    return rebuild(*args)


def _bytes(text: str = "", encoding: str = "latin1") -> bytes:
    # pickle writes latin1; looking up a codec that the file names would import it
    return text.encode("latin1")


_BUILTINS: dict[str, Callable[..., Any]] = {
    "set": set,
    "frozenset": frozenset,
    "complex": complex,
    "bytes": _bytes,
}
_FUNCTIONS: dict[tuple[str, str], Callable[..., Any]] = {
    **{("builtins", name): kind for name, kind in _BUILTINS.items()},
    **{("__builtin__", name): kind for name, kind in _BUILTINS.items()},
    ("_codecs", "encode"): _bytes,
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): _tensor_with_attributes,
}
_KNOWN: dict[tuple[str, str], Any] = {
    **{name: _Sealed(function) for name, function in _FUNCTIONS.items()},
    **{("torch", n): value for n, value in vars(torch).items() if isinstance(value, torch.dtype)},
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        # whole names are compared, so a dotted one leads nowhere
        if (module, name) in _KNOWN:
            return _KNOWN[module, name]
        if module.startswith("torch") and ("_rebuild" in name or name.endswith("Storage")):
            raise _Unreadable(
                f"holds a tensor of a kind that is not read here ({module}.{name}); "
                "save its parameters as .safetensors where it was made"
            )
        return Placeholder

    def load(self) -> Any:
        torchs = getattr(self, "persistent_load", None)

        def persistent_load(saved_id: Any) -> Any:
            if isinstance(saved_id, tuple) and saved_id[:1] == ("storage",) and torchs is not None:
                return _Sealed(torchs(saved_id))
            # a class with its source, which torch would look up and compare
            return Placeholder

        self.persistent_load = persistent_load  # type: ignore[method-assign]
        # this cache would hand out what others loaded, and hand our placeholders to others
        copyreg.clear_extension_cache()
        try:
            return super().load()
        finally:
            copyreg.clear_extension_cache()


class _PickleModule:
    """What ``torch.load`` uses of a pickle module."""

    Unpickler = _Unpickler

    @staticmethod
    def load(file: IO[bytes], *, encoding: str) -> Any:
        return _Unpickler(file, encoding=encoding).load()


def _check_format(file: IO[bytes]) -> None:
    """Refuse what ``torch.load`` would give to other readers than ours, and what is no such file.

    Leaves the file at its start.
    """
    head = file.read(HEAD)
    file.seek(0)
    if head.startswith(ZIP):
        # torch's own list: another reader of zip files might see other records
        records = torch._C.PyTorchFileReader(file).get_all_records()
        file.seek(0)
        if "constants.pkl" in records:
            raise _Unreadable(
                "is a TorchScript program, which is not run here; save its state_dict() instead"
            )
        return
    if BEFORE_TORCH_1_6 not in head:
        raise _Unreadable(_not_a_torch_file(head))
    is_tar = tarfile.is_tarfile(file)
    file.seek(0)
    if is_tar:
        raise _Unreadable(ARCHIVE)


def _not_a_torch_file(head: bytes) -> str:
    if not head:
        return "is empty; download or copy it again"
    if head.startswith(b"\x1f\x8b") or head[257:262] == b"ustar":
        return ARCHIVE
    if head.startswith(b"version https://git-lfs"):
        return "is a git-lfs pointer, not the file itself; run 'git lfs pull' in its repository"
    if head.lstrip().startswith(b"<"):
        return "is a web page, so its download failed; download it again"
    if head[8:9] == b"{":
        return "is a safetensors file; let its name end in .safetensors"
    return "was not written by torch.save; name an original's .pt, .pth or .bin file"


def read_torch_file(path: Path, key: str) -> Any:
    """What ``torch.save`` wrote, in its zip format or the one before torch 1.6.

    Dicts, lists, sets, strings, bytes and numbers come back as they were. Tensors are on the CPU,
    parameters among them plain tensors, views of one storage still share it. Every other object
    is a ``Placeholder``.

    Args:
        path: of the file; its suffix does not matter.
        key: of the config, that errors start with.

    Raises:
        UserError: nothing there, no file of torch.save, a damaged one, or one with quantised,
            sparse or other tensors of special kinds.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise UserError(f"{key}: {path} cannot be read: {error.strerror}") from error
    with file:
        try:
            _check_format(file)
            # the open file: torch gives a path that ends in .safetensors to another reader
            return torch.load(
                file,
                map_location="cpu",
                pickle_module=_PickleModule,
                weights_only=False,
                mmap=False,
            )
        except _Unreadable as error:
            raise UserError(f"{key}: {path} {error}") from error
        except Exception as error:  # a damaged pickle can raise anything
            reason = " ".join(str(error).split())
            raise UserError(
                f"{key}: {path} is damaged or cut short; download or copy it again "
                f"({type(error).__name__}: {reason})"
            ) from error
