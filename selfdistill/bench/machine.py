"""What the machine is, how quickly it multiplies matrices, and its memory."""

import os
import platform
import resource
import time
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

import selfdistill
from selfdistill.engine.processes import are_several
from selfdistill.engine.sums import over_processes
from selfdistill.errors import UserError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""By the values of ``train.precision``."""
SIZES = (256, 512, 1024, 2048, 4096, 8192, 16384)
LONGEST = 0.3
"""Seconds of one product, above which no larger one is tried."""
REPEATS = 7


def check_alone(what: str) -> None:
    """
    Raises:
        UserError: this is one of several processes, which would all do the same.
    """
    if are_several():
        raise UserError(f"{what}: works in one process only; start it without a launcher")


def peak_memory(accelerator: Accelerator) -> dict[str, int]:
    """Peak bytes since the program began, of the process that needed most.

    On a GPU ``allocated`` is what tensors took, ``reserved`` what torch held for them. Elsewhere
    ``resident`` is the process's memory with program and libraries; its data workers are not in it.
    """
    device = accelerator.device
    if device.type == "cuda":
        own = {
            "allocated": torch.cuda.max_memory_allocated(device),
            "reserved": torch.cuda.max_memory_reserved(device),
        }
    else:
        own = {"resident": _peak_resident()}
    every = gather_object([own])
    return {key: max(one[key] for one in every) for key in own}


def _peak_resident() -> int:
    # the other source counts what the parent of this process had, too
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if platform.system() == "Darwin" else most << 10


def free_memory() -> int | None:
    """Bytes of the host's memory that this process may still take; None: it cannot be told."""
    found = []
    with suppress(OSError, ValueError):
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        found.append(limit - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    with suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found.append(int(line.split()[1]) << 10)
    return min(found) if found else None


def matmul_rate(accelerator: Accelerator, precision: str) -> dict[str, float]:
    """The best rate of products of square matrices in a precision, with the threads of the run.

    All processes multiply at the same time, as they would in training.

    Returns:
        ``flops_per_second`` of all processes together, and the ``size`` of the main one's matrices.
    """
    dtype = DTYPES[precision]
    best, best_size = 0.0, 0
    accelerator.wait_for_everyone()
    for size in SIZES:
        try:
            seconds = _seconds_of_product(size, dtype, accelerator.device)
        except torch.OutOfMemoryError:
            break
        if 2 * size**3 / seconds > best:
            best, best_size = 2 * size**3 / seconds, size
        if seconds > LONGEST:
            break
    return {"flops_per_second": over_processes([best], accelerator)[0], "size": best_size}


def _seconds_of_product(size: int, dtype: torch.dtype, device: torch.device) -> float:
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        left @ right
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
        if sum(times[1:]) > LONGEST:
            break
    return median(times[1:] or times)


def description(accelerator: Accelerator) -> dict[str, Any]:
    """Device and versions; plain JSON values."""
    device = accelerator.device
    on_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else processor(),
        "device_type": device.type,
        "processes": accelerator.num_processes,
        "threads": torch.get_num_threads(),
        "precision": {"no": "fp32"}.get(accelerator.mixed_precision, accelerator.mixed_precision),
        "memory": torch.cuda.get_device_properties(device).total_memory if on_gpu else _installed(),
        "versions": {
            "selfdistill": selfdistill.__version__,
            "torch": torch.__version__,
            "cuda": torch.version.cuda if on_gpu else None,
            "python": platform.python_version(),
        },
        "platform": platform.platform(),
    }


def _installed() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def processor() -> str:
    """The name of this machine's."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
