"""Device, precision and processes of a run, as accelerate has them."""

import os
import warnings
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

from selfdistill.config import RunConfig
from selfdistill.engine.processes import are_several, waiting_told
from selfdistill.errors import UserError

PATIENCE = timedelta(hours=2)
"""How long processes wait for each other; NCCL by itself would give up after ten minutes."""


def build_accelerator(config: RunConfig) -> Accelerator:
    """Device, precision and processes of a run.

    Raises:
        UserError: the precision does not work on the device.
    """
    precision = {"fp32": "no"}.get(config.train.precision, config.train.precision)
    copies = DistributedDataParallelKwargs(
        # a dropped layer leaves its parameters without gradient
        find_unused_parameters=config.model.layer_drop > 0,
        broadcast_buffers=False,  # they are constants
        gradient_as_bucket_view=True,  # or each gradient is there twice
    )
    # newer torch has another name for it, which accelerate cannot pass on yet
    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
    # one process evaluates, saves and prepares the data while the others wait
    patience = InitProcessGroupKwargs(timeout=PATIENCE)
    if config.train.deterministic:
        torch.use_deterministic_algorithms(True)
        # without a workspace of a fixed size older torch refuses matrix products on a GPU
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if config.train.precision == "fp32":
        # torch would round what convolutions take to ten bits
        torch.backends.cudnn.allow_tf32 = False
    else:
        # of the few products that autocast leaves in float32
        torch.backends.cuda.matmul.fp32_precision = "tf32"
    # else a process that finds a mistake may be gone before another one has connected to it, which
    # then tells of that
    os.environ.setdefault("TORCH_DIST_INIT_BARRIER", "1")
    if are_several() and not torch.accelerator.is_available():
        # accelerate joins processes on CPUs only where it is told so; else each would train alone
        os.environ.setdefault("ACCELERATE_USE_CPU", "true")
    try:
        with waiting_told():
            accelerator = Accelerator(mixed_precision=precision, kwargs_handlers=[copies, patience])
    except ValueError as error:
        raise UserError(f"train.precision: {precision} cannot be used ({error})") from error
    if precision == "fp16" and not accelerator.native_amp:
        # accelerate would train in fp32 without a word
        raise UserError(
            f"train.precision: fp16 does not work on device '{accelerator.device.type}'; "
            "choose fp32 or bf16"
        )
    return accelerator
