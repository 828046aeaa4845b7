"""Recordings of the original implementations as configs, batches and tensors."""

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from selfdistill.config import RunConfig
from selfdistill.modalities.base import Modality, OriginalFormat
from selfdistill.modalities.text.tokenizer import PAD_ID
from selfdistill.originals import original_config, recognise
from selfdistill.types import Batch, Masks

State = dict[str, Tensor]


@dataclass(frozen=True)
class Tolerances:
    """Of the two kinds of recordings; gradients of images are judged against the largest of
    their tensor."""

    teacher_layer: float
    forward: float
    loss: float
    gradient: float
    final: float
    ema_final: float
    gradient_relative: str


FAIRSEQ = Tolerances(2e-5, 2e-5, 1e-5, 1e-5, 4e-5, 4e-5, "")
IMAGE = Tolerances(3e-5, 1e-5, 2e-6, 1e-5, 5e-5, 2e-5, "max")


@dataclass
class Recording:
    """A file, with what belongs to it from the files beside it."""

    tensors: State
    meta: dict[str, Any]
    modality: Modality
    original: OriginalFormat
    config: RunConfig
    batches: list[Batch]
    tolerances: Tolerances

    def part(self, prefix: str) -> State:
        start = prefix + "."
        return {n[len(start) :]: t for n, t in self.tensors.items() if n.startswith(start)}


def read(path: Path) -> tuple[State, dict[str, Any]]:
    with safe_open(str(path), framework="pt") as file:
        metadata = file.metadata() or {}
    return load_file(path), json.loads(metadata.get("json") or metadata.get("meta") or "{}")


def recording(path: Path) -> Recording | None:
    """Read a file; None for the data that trajectories of other files read."""
    tensors, meta = read(path)
    if "kind" in meta:
        return fairseq_recording(tensors, meta)
    if "batch.images" in tensors:
        return None
    if "traj.loss" in tensors:
        prefix = path.name[: path.name.index(f"_{meta['case']}_traj")]
        start, _ = read(path.with_name(f"{prefix}_{meta['case']}_step.safetensors"))
        data, _ = read(path.with_name(f"{prefix}_trajdata.safetensors"))
        tensors |= {n: t for n, t in start.items() if n.startswith(("init.", "ema_init."))} | data
    return image_recording(tensors, meta)


def init_state(tensors: State) -> State:
    return {n.removeprefix("init."): t for n, t in tensors.items() if n.startswith("init.")}


def fairseq_recording(tensors: State, meta: dict[str, Any]) -> Recording:
    modality, original = recognise(init_state(tensors))
    first = meta["kind"].startswith("v1_")
    recorded = meta["optimizer"]
    extra: dict[str, dict[str, Any]] = {
        "compat": {
            "padding_in_target_statistics": True,
            "padding_in_positions": first,
            "padding_in_features": not first,
            "summed_class_loss": not first,
        },
        "optim": {
            "lr": recorded["lr"],
            "betas": list(recorded["betas"]),
            "eps": recorded["eps"],
            "weight_decay": recorded["weight_decay"],
            "no_decay": [],
            "decay_one_dimensional": True,
        },
    }
    if modality.name == "text":
        notes = dict(n.split("=", 1) for n in meta["notes"].replace(";", " ").split() if "=" in n)
        (rows,) = (t.shape[0] for n, t in tensors.items() if n in TOKEN_TABLES)
        extra["encoder"] = {"vocab_size": rows, "mask_id": int(notes.get("mask_idx", rows - 1))}
        extra["compat"]["masked_only_teacher"] = first and sees_less(tensors)
    settings = copy.deepcopy(meta["config"])
    if not first:
        settings["modalities"][modality.name] |= ANY_MASKS
    config = original_config(modality, original, settings, extra)
    inputs = {n.removeprefix("input."): t for n, t in tensors.items() if n.startswith("input.")}
    layout = meta.get("input_layout", {})
    stepped = "traj.loss" in tensors
    steps = [
        {n: t[step] if stepped and layout.get(n) == "per_step" else t for n, t in inputs.items()}
        for step in range(meta["steps"] if stepped else 1)
    ]
    if not first:
        batches = [batch_of_2(step) for step in steps]
    elif modality.name == "text":
        batches = [text_batch(step, config.encoder.mask_id) for step in steps]
    else:
        batches = [audio_batch(step) for step in steps]
    return Recording(tensors, meta, modality, original, config, batches, FAIRSEQ)


ANY_MASKS = {"mask_prob": 0.5, "mask_prob_adjust": 0.0, "mask_length": 1, "inverse_mask": False}
"""Masks are recorded: how they were drawn must not matter."""
TOKEN_TABLES = (
    "init.encoder.sentence_encoder.embed_tokens.weight",
    "init.modality_encoders.TEXT.local_encoder.embed_tokens.weight",
)


def batch_of_2(inputs: State) -> Batch:
    """2.0 masks padding like anything else."""
    lengths = None
    if "padding_mask" in inputs and inputs["padding_mask"].any():
        lengths = (~inputs["padding_mask"].bool()).sum(1)
    return Batch(inputs["source"], lengths, Masks.from_bool(inputs["precomputed_mask"].bool()))


def audio_batch(inputs: State) -> Batch:
    lengths = None
    if "padding_mask" in inputs and inputs["padding_mask"].any():
        lengths = (~inputs["padding_mask"].bool()).sum(1)
    return Batch(inputs["source"], lengths, Masks.from_bool(inputs["mask_indices"]))


def sees_less(tensors: State) -> bool:
    """Whether the teacher has padding where the student has tokens."""
    student, teacher = tensors["input.src_tokens"], tensors["input.target_tokens"]
    return bool((teacher.eq(PAD_ID) & student.ne(PAD_ID)).any())


def text_batch(inputs: State, mask_id: int) -> Batch:
    """The recorded student's input has ``<mask>`` in it, the teacher's has the original tokens,
    everywhere or (what the released pipeline did) at masked places only."""
    source, target = inputs["src_tokens"], inputs["target_tokens"]
    masked = source == mask_id
    tokens = torch.where(masked, target, source)
    lengths = tokens.ne(PAD_ID).sum(1)
    return Batch(tokens, lengths, Masks.from_bool(masked), teacher_inputs=target)


def image_recording(tensors: State, meta: dict[str, Any]) -> Recording:
    settings = dict(meta["config"])
    if "classes" in settings:  # a fine-tuned classifier: settings of pretraining do not matter
        image = settings["img"]
        height, width = (image, image) if isinstance(image, int) else image
        patches = height // settings["patch"] * (width // settings["patch"])
        settings |= {
            "mlp_ratio": tensors["init.blocks.0.mlp.fc1.weight"].shape[0] / settings["dim"],
            "layer_scale": 1e-4 if "init.blocks.0.gamma_1" in tensors else 0.0,
            "target_layers": [settings["depth"] - 1],
            "num_mask": patches // 2,
            "min_block": 1,
            "max_block": None,
            "l1_beta": 0.0,
            "ema_decay_init": 0.9,
            "ema_decay": 0.99,
            "ema_start_at": 0,
        }
    modality, original = recognise(init_state(tensors))
    recorded = meta.get("optimizer", {})
    shared = "init.rel_pos_bias.relative_position_bias_table" in tensors
    extra: dict[str, dict[str, Any]] = {
        "encoder": {"positions": "relative" if shared else "block_relative"},
        "optim": {
            "lr": recorded.get("lr", 1e-3),
            "betas": list(recorded.get("betas", (0.9, 0.999))),
            "eps": recorded.get("eps", 1e-8),
            "weight_decay": recorded.get("weight_decay", 0.05),
            "no_decay": ["*.class_token"],
            "clip_norm": meta.get("clip_grad") or 0.0,
        },
        "compat": {
            "ema_epoch_steps": settings.get("steps_per_epoch", 0),
            "averaged_index_buffers": "index_buffer_restored" in meta
            and not meta["index_buffer_restored"],
        },
    }
    config = original_config(modality, original, settings, extra)
    if "batch.images" in tensors:
        pairs = zip(tensors["batch.images"], tensors["batch.mask"], strict=True)
    else:
        images = tensors["input.images"]
        patches = config.input.size[0] * config.input.size[1] // config.encoder.patch_size**2
        none = torch.zeros(len(images), patches, dtype=torch.bool)
        pairs = iter([(images, tensors.get("input.mask", none))])
    batches = [Batch(images, masks=Masks.from_bool(mask)) for images, mask in pairs]
    return Recording(tensors, meta, modality, original, config, batches, IMAGE)
