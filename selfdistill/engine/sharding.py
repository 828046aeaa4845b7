"""Weights, gradients and optimiser state in shards over the processes: FSDP2, torch's fully_shard.

Sharding is chosen by accelerate's config (``use_fsdp``) or its environment. The wrapping is done
here and not by accelerate, which leaves it out on the CPU without a word. Shards are float32 and so
is what travels; in mixed precision autocast decides what is computed in which precision, as without
shards. So the numbers are those of whole copies of the model, and the teacher stays in float32. To
gather the student's weights in half would spare a quarter of what travels at most.
"""

import contextlib
from collections.abc import Iterator, Mapping

import torch
from accelerate import Accelerator
from accelerate.utils import FullyShardedDataParallelPlugin, parse_flag_from_env
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from selfdistill.config import RunConfig
from selfdistill.errors import UserError
from selfdistill.modalities.backbone import Backbones, build_backbones
from selfdistill.models.block import Block
from selfdistill.objective.data2vec import Data2Vec


def settings() -> FullyShardedDataParallelPlugin | None:
    """What accelerate was told of sharding; None: nothing, or there is one process only.

    Raises:
        UserError: it was told to do it in a way that does not work here.
    """
    if not parse_flag_from_env("ACCELERATE_USE_FSDP"):
        return None
    plugin = FullyShardedDataParallelPlugin()
    for wrong, key, advice in (
        (plugin.fsdp_version != 2, "fsdp_version", "2"),
        (isinstance(plugin.cpu_offload, CPUOffloadPolicy), "fsdp_offload_params", "false"),
        (
            plugin.activation_checkpointing,
            "fsdp_activation_checkpointing",
            "false, and train.activation_checkpointing to true",
        ),
    ):
        if wrong:
            raise UserError(
                f"{key}: accelerate's config has a value that is not supported; set it to {advice}"
            )
    return plugin if torch.distributed.is_initialized() else None


def shard(
    model: Data2Vec, accelerator: Accelerator, settings: FullyShardedDataParallelPlugin
) -> None:
    """Leave each process its share of the weights; each block is gathered when it is run.

    Args:
        model: the same on all processes, before an optimiser is made of its parameters.
        accelerator: its device and processes.
        settings: ``reshard_after_forward`` says whether the student's blocks are let go of before
            the backward pass. The teacher's always are: it has none.

    Raises:
        UserError: in fp16 each process would see the overflows of its own shards only.
    """
    if accelerator.scaler is not None:
        raise UserError("train.precision: fp16 does not work with shards (FSDP); choose bf16")
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for module, again in ((model.teacher, True), (model.student, settings.reshard_after_forward)):
        for block in module.modules():
            if isinstance(block, Block):
                fully_shard(block, mesh=mesh, reshard_after_forward=again)
    fully_shard(model, mesh=mesh)


@contextlib.contextmanager
def no_sync(model: nn.Module, accelerator: Accelerator) -> Iterator[None]:
    """Keep gradients to each process: those of a later micro-batch are added before they travel."""
    if not isinstance(model, FSDPModule):
        with accelerator.no_sync(model):
            yield
        return
    model.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        model.set_requires_gradient_sync(True)


def whole(tensor: Tensor) -> Tensor:
    """A tensor with what all processes have of it; all must ask together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def spread(value: Tensor, like: Tensor) -> Tensor:
    """This process's share of ``value``, which all have, where ``like`` is sharded."""
    if not isinstance(like, DTensor):
        return value
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


def gather(tensors: Mapping[str, Tensor], buffers: dict[str, Tensor] | None) -> dict[str, Tensor]:
    """Copies on the CPU of whole tensors; all processes must call it with the same names.

    Torch's own functions for the optimiser's state are not used: get_optimizer_state_dict makes up
    a state where there is none yet, whose count of steps then begins at 1, and
    set_optimizer_state_dict refuses parameters that have none.

    Args:
        tensors: sharded or not.
        buffers: memory from last time, by name, which is used again and added to; fresh memory
            takes several times as long. None: nothing is kept on this process.
    """
    for name, tensor in tensors.items():
        value = whole(tensor.detach())
        if buffers is not None:
            if name not in buffers:
                buffers[name] = torch.empty(value.shape, dtype=value.dtype, device="cpu")
            buffers[name].copy_(value)
    return {} if buffers is None else {name: buffers[name] for name in tensors}


def whole_student(model: Data2Vec, config: RunConfig, accelerator: Accelerator) -> Backbones:
    """The student with all its weights, on every process; if it is sharded, a copy.

    All processes must call it together.
    """
    if not isinstance(model, FSDPModule):
        return model.student
    state = gather(model.student.state_dict(), {})
    with torch.random.fork_rng(devices=[]):  # they are drawn on the CPU
        student = build_backbones(config)
    student.load_state_dict(state)
    return student.to(accelerator.device)
