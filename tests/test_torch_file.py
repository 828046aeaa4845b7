"""Files of torch.save give their tensors, and nothing that they name is run or imported."""

import builtins
import contextlib
import copyreg
import enum
import functools
import io
import os
import pickle
import sys
import tarfile
import types
import warnings
import zipfile
from argparse import Namespace
from collections import OrderedDict, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import Tensor, nn

from selfdistill.errors import UserError
from selfdistill.torch_file import BEFORE_TORCH_1_6, Placeholder, read_torch_file

ZIP_OR_LEGACY = pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
WEIGHT = torch.arange(6, dtype=torch.float32)


def save(content: object, path: Path, is_zip: bool, protocol: int = 2) -> None:
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=is_zip)


def write_pickle(pickled: bytes, path: Path, is_zip: bool) -> None:
    """A file of torch.save, without storages, whose pickle is given byte by byte."""
    if is_zip:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", pickled)
            archive.writestr("archive/version", "3\n")
        return
    header = [torch.serialization.MAGIC_NUMBER, torch.serialization.PROTOCOL_VERSION, {}]
    parts = [pickle.dumps(part, protocol=2) for part in header]
    path.write_bytes(b"".join([*parts, pickled, pickle.dumps([])]))


def same_bits(ours: Tensor, theirs: Tensor) -> bool:
    form = (theirs.dtype, theirs.shape, theirs.stride(), torch.device("cpu"))
    pair = (t.detach().resolve_conj().contiguous() for t in (ours, theirs))
    raw = [t.reshape(-1).view(torch.uint8) for t in pair]
    return (ours.dtype, ours.shape, ours.stride(), ours.device) == form and torch.equal(*raw)


class Choice(enum.Enum):
    LAYER = "layer_norm"


class Slotted:
    __slots__ = ("depth",)
    depth: int


@pytest.fixture
def gone() -> Any:
    """An object whose class cannot be found, let alone imported, when the file is read."""
    module = types.ModuleType("gone_settings")
    exec("class Settings:\n    pass", module.__dict__)
    sys.modules["gone_settings"] = module
    settings = module.Settings()
    settings.model = {"layers": 12}
    yield settings
    sys.modules.pop("gone_settings", None)


def tensors() -> OrderedDict[str, Tensor]:
    table = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    made = {
        "table": table,
        "row": table[2],
        "columns": table.T[1:4],
        "parameter": nn.Parameter(torch.tensor([1.5, float("nan"), -0.0])),
        "half": table.half(),
        "bfloat": table.bfloat16(),
        "count": torch.tensor(3),
        "flags": torch.tensor([True, False]),
        "conjugate": torch.view_as_complex(table[:, :2].contiguous()).conj(),
        "none": torch.empty(0, 4),
        "tagged": table + 1,
    }
    made["tagged"].tag = "a"  # type: ignore[attr-defined]
    made["parameter"].optim_overrides = {"optimizer": {}}  # type: ignore[attr-defined]
    named = OrderedDict(made)
    named._metadata = OrderedDict({"": {"version": 1}})  # type: ignore[attr-defined]
    return named


@ZIP_OR_LEGACY
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_fairseq_file(protocol: int, is_zip: bool, gone: Any, tmp_path: Path) -> None:
    model = tensors()
    slotted = Slotted()
    slotted.depth = 12
    content = {
        "args": Namespace(arch="data2vec", normalize=True),
        "cfg": gone,
        "model": model,
        "extra_state": {
            "best": np.float64(1.25),
            "rng": np.arange(3),
            "recent": deque([1, 2]),
            Choice.LAYER: Choice.LAYER,
        },
        "optimizer_history": [{"num_updates": 7, "lr_scheduler_state": {"best": None}}],
        "task_state": {"settings": OmegaConf.create({"depth": [1, 2]}), "slotted": slotted},
    }
    save(content, tmp_path / "checkpoint.pt", is_zip, protocol)
    del sys.modules["gone_settings"]
    read = read_torch_file(tmp_path / "checkpoint.pt", "init_from")
    assert type(read["model"]) is OrderedDict
    assert list(read["model"]) == list(model)
    for name, tensor in read["model"].items():
        assert type(tensor) is Tensor, name
        assert not tensor.requires_grad, name
        assert same_bits(tensor, model[name]), name
    table, row = read["model"]["table"], read["model"]["row"]
    table[2] = 0
    assert not row.any(), "views share their storage no more"
    assert read["args"] == {"arch": "data2vec", "normalize": True}
    assert read["cfg"] == {"model": {"layers": 12}}
    assert "gone_settings" not in sys.modules
    assert read["optimizer_history"] == content["optimizer_history"]
    assert all(type(value) is Placeholder for value in read["extra_state"].values())
    assert read["task_state"]["slotted"] == {"depth": 12}
    assert set(read["task_state"]["settings"]) >= {"_content"}


@ZIP_OR_LEGACY
@pytest.mark.parametrize("protocol", [2, 4])
def test_plain_data_comes_back_as_it_was(protocol: int, is_zip: bool, tmp_path: Path) -> None:
    content = {
        "numbers": [1, 2**70, 0.1, True, None, 1 + 2j],
        "texts": ("a", "\xe9", b"", b"\x00\xff"),
        "sets": ({1, 2}, frozenset({"a"}), set()),
        "torch": [torch.float16, torch.device("cuda", 1), torch.Size([2, 3])],
        3: {"nested": OrderedDict(b=1, a=2)},
    }
    save(content, tmp_path / "plain.pt", is_zip, protocol)
    assert read_torch_file(tmp_path / "plain.pt", "init_from") == content


@ZIP_OR_LEGACY
def test_tensors_of_another_device(
    is_zip: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:7")
    save({"model": {"weight": WEIGHT}}, tmp_path / "gpu.bin", is_zip)
    assert b"cuda:7" in (tmp_path / "gpu.bin").read_bytes()
    assert same_bits(read_torch_file(tmp_path / "gpu.bin", "k")["model"]["weight"], WEIGHT)


class Call:
    """Is pickled as a call, whose function may itself be one."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.parts = (function, args)

    def __reduce__(self) -> Any:
        return self.parts

    def __call__(self) -> None:
        """Pickle asks whether it could be called."""


class TrapByState:
    def __init__(self, canary: Path) -> None:
        self.canary = str(canary)

    def __setstate__(self, state: dict[str, str]) -> None:
        os.mkdir(state["canary"])


class TrapByNew:
    def __new__(cls, canary: Path, makes: bool = False) -> "TrapByNew":
        if makes:
            os.mkdir(canary)
        trap = super().__new__(cls)
        trap.canary = canary
        return trap

    canary: Path

    def __getnewargs_ex__(self) -> Any:
        return (str(self.canary),), {"makes": True}


def nested_file(canary: Path) -> Call:
    buffer = io.BytesIO()
    torch.save(Call(os.mkdir, str(canary)), buffer)
    return Call(torch.storage._load_from_bytes, buffer.getvalue())


def hub(canary: Path) -> Call:
    folder = canary.parent / "hub"
    folder.mkdir(exist_ok=True)
    (folder / "hubconf.py").write_text(f"import os\nos.mkdir({str(canary)!r})\n")
    return Call(functools.partial(torch.hub.load, str(folder), "model", source="local"))


def imported(canary: Path) -> Call:
    (canary.parent / "trap_module.py").write_text(
        f"import os\nos.mkdir({str(canary)!r})\ndef function(): pass\n"
    )
    module = types.ModuleType("trap_module")
    exec("def function(): pass", module.__dict__)
    sys.modules["trap_module"] = module
    return Call(module.function)


CODE = "__import__('os').mkdir({!r})"
ATTACKS: dict[str, Callable[[Path], Any]] = {
    "os": lambda canary: Call(os.mkdir, str(canary)),
    "shell": lambda canary: Call(os.system, f"mkdir {canary}"),
    "eval": lambda canary: Call(eval, CODE.format(str(canary))),
    "exec": lambda canary: Call(exec, CODE.format(str(canary))),
    "getattr": lambda canary: Call(
        Call(getattr, Call(builtins.__import__, "os"), "mkdir"), str(canary)
    ),
    "partial": lambda canary: Call(functools.partial(os.mkdir, str(canary))),
    "setstate": TrapByState,
    "new": TrapByNew,
    "nested file": nested_file,
    "hub": hub,
    "import": imported,
}


@ZIP_OR_LEGACY
@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_is_run(
    attack: str, is_zip: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    canary, path = tmp_path / "canary", tmp_path / "evil.pt"
    monkeypatch.syspath_prepend(tmp_path)
    save({"first": ATTACKS[attack](canary), "weight": WEIGHT}, path, is_zip)
    sys.modules.pop("trap_module", None)
    read = read_torch_file(path, "init_from")
    assert not canary.exists()
    assert same_bits(read["weight"], WEIGHT)
    assert type(read["first"]) is Placeholder
    with contextlib.suppress(Exception):
        torch.load(path, weights_only=False)
    sys.modules.pop("trap_module", None)
    assert canary.exists(), "an attack that does nothing tests nothing"


def short(text: str) -> bytes:
    return b"\x8c" + bytes([len(text)]) + text.encode()


# ways to name and call a function that Python's pickler does not write
BY_HAND: dict[str, Callable[[str], bytes]] = {
    "INST": lambda canary: f"(V{canary}\nios\nmkdir\n.".encode(),
    "OBJ": lambda canary: f"(cos\nmkdir\nV{canary}\no.".encode(),
    "NEWOBJ": lambda canary: f"c{__name__}\nTrapByNew\n(V{canary}\nI01\nt\x81.".encode("latin1"),
    "EXT1": lambda canary: b"\x82\xf0" + f"(V{canary}\ntR.".encode(),
    "dotted name": lambda canary: b"".join(
        [b"\x80\x04", short("shutil"), short("os.mkdir"), b"\x93(", short(canary), b"tR."]
    ),
}


@pytest.fixture
def extension() -> Any:
    copyreg.add_extension("os", "mkdir", 0xF0)
    yield
    copyreg.remove_extension("os", "mkdir", 0xF0)


@ZIP_OR_LEGACY
@pytest.mark.parametrize("opcode", BY_HAND)
@pytest.mark.usefixtures("extension")
def test_nothing_is_run_by_hand_made_pickles(opcode: str, is_zip: bool, tmp_path: Path) -> None:
    canary, path = tmp_path / "canary", tmp_path / "evil.pt"
    write_pickle(BY_HAND[opcode](str(canary)), path, is_zip)
    for _ in range(2):  # the second time Python has loaded the extension
        assert type(read_torch_file(path, "init_from")) is Placeholder
        assert not canary.exists()
        torch.load(path, weights_only=False)
        canary.rmdir()  # an attack that does nothing would test nothing


@ZIP_OR_LEGACY
def test_torchs_functions_cannot_be_changed(is_zip: bool, tmp_path: Path) -> None:
    state = pickle.dumps((None, {"tampered": 1}), protocol=2)[2:-1]
    build = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n" + state + b"b."
    write_pickle(build, tmp_path / "evil.pt", is_zip)
    with pytest.raises(UserError, match=r"init_from: .*damaged .*changes what is not its own"):
        read_torch_file(tmp_path / "evil.pt", "init_from")
    assert not hasattr(torch._utils._rebuild_tensor_v2, "tampered")
    pickle.loads(build)
    del torch._utils._rebuild_tensor_v2.tampered  # type: ignore[attr-defined]


@ZIP_OR_LEGACY
def test_a_whole_module_is_not_built(is_zip: bool, tmp_path: Path) -> None:
    # the legacy format keeps the class's source, which torch would compare with the installed one
    layer = nn.Linear(2, 3)
    save(layer, tmp_path / "module.pt", is_zip)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read = read_torch_file(tmp_path / "module.pt", "init_from")
    assert type(read) is Placeholder
    assert same_bits(read["_parameters"]["weight"], layer.weight)


SPECIAL = {
    "_rebuild_sparse_tensor": lambda: torch.eye(3).to_sparse(),
    "_rebuild_qtensor": lambda: torch.quantize_per_tensor(WEIGHT, 0.1, 0, torch.qint8),
    "_rebuild_tensor_v3": lambda: WEIGHT.to(torch.uint16),
    "UntypedStorage": WEIGHT.untyped_storage,
}


@ZIP_OR_LEGACY
@pytest.mark.parametrize("name", SPECIAL)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_tensors_of_special_kinds_are_refused(name: str, is_zip: bool, tmp_path: Path) -> None:
    save({"model": {"weight": SPECIAL[name]()}}, tmp_path / "special.pt", is_zip)
    with pytest.raises(UserError, match=rf"init_from: .*special\.pt holds .*{name}.*safetensors"):
        read_torch_file(tmp_path / "special.pt", "init_from")


@ZIP_OR_LEGACY
def test_a_tensor_longer_than_its_data(is_zip: bool, tmp_path: Path) -> None:
    view = (0, (600,), (1,), False, OrderedDict[str, object]())
    call = Call(torch._utils._rebuild_tensor_v2, WEIGHT._typed_storage(), *view)
    save(call, tmp_path / "long.pt", is_zip)
    with pytest.raises(UserError, match=r"init_from: .*long\.pt is damaged"):
        read_torch_file(tmp_path / "long.pt", "init_from")


@ZIP_OR_LEGACY
def test_tensors_of_old_torch(is_zip: bool, tmp_path: Path) -> None:
    call = Call(torch._utils._rebuild_tensor, WEIGHT._typed_storage(), 0, (6,), (1,))
    save(call, tmp_path / "old.pt", is_zip)
    assert same_bits(read_torch_file(tmp_path / "old.pt", "init_from"), WEIGHT)


@ZIP_OR_LEGACY
def test_cut_short(is_zip: bool, tmp_path: Path) -> None:
    path = tmp_path / "cut.pt"
    save({"model": {"weight": WEIGHT}}, path, is_zip)
    whole = path.read_bytes()
    for length in [*range(40, len(whole), len(whole) // 40), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"k: .*cut\.pt is damaged or cut short; download"):
            read_torch_file(path, "k")


def tar(name: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo(name.decode("utf-8", "surrogateescape")))
    return buffer.getvalue()


OTHERS = {
    "is empty; download": b"",
    "is a web page": b"\n<!DOCTYPE html><html>",
    "is a git-lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n",
    "is an archive; unpack": tar(b"storages"),
    "is an archive; unpack it": tar(b"\x80\x02\x8a\x0a" + BEFORE_TORCH_1_6),
    "is an archive; .* inside": b"\x1f\x8b\x08\x00",
    r"was not written by torch\.save": b"wav2vec weights\n",
    r"was .*; name an original's \.pt": b"\x00" * 2048,
}


@pytest.mark.parametrize("message", OTHERS)
def test_what_is_no_torch_file(message: str, tmp_path: Path) -> None:
    (tmp_path / "weights.pt").write_bytes(OTHERS[message])
    with pytest.raises(UserError, match=rf"^init_from: .*weights\.pt {message}"):
        read_torch_file(tmp_path / "weights.pt", "init_from")


def test_the_formats_of_others(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    save_file({"weight": WEIGHT}, path)
    with pytest.raises(UserError, match=r"weights\.pt is a safetensors file; let its name end"):
        read_torch_file(path, "init_from")
    np.savez(tmp_path / "arrays.npz", weight=WEIGHT.numpy())
    (tmp_path / "arrays.npz").rename(path)
    with pytest.raises(UserError, match=r"weights\.pt is damaged or cut short"):
        read_torch_file(path, "init_from")
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("data.pkl", "constants.pkl", "version"):
            archive.writestr(f"archive/{name}", "3")
    with pytest.raises(UserError, match=r"weights\.pt is a TorchScript program"):
        read_torch_file(path, "init_from")


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"init_from: .*missing\.pt cannot be read: No such file"):
        read_torch_file(tmp_path / "missing.pt", "init_from")
    with pytest.raises(UserError, match=r"init_from: .* cannot be read: Is a directory"):
        read_torch_file(tmp_path, "init_from")


def test_the_suffix_does_not_matter(tmp_path: Path) -> None:
    save({"weight": WEIGHT}, tmp_path / "renamed.safetensors", is_zip=True)
    read = read_torch_file(tmp_path / "renamed.safetensors", "init_from")
    assert same_bits(read["weight"], WEIGHT)
