"""Replay recordings of the original implementations through the package's own modules.

    python tests/golden/replay.py FILE... [--device cuda]

Each file holds an original's weights, inputs, masks, targets, predictions, loss, gradients, and a
ten-step training run (README.md beside this file). One row per quantity is printed: its largest
absolute and relative error, what is compared with the tolerance, and the tolerance. The exit code
is 1 if one is exceeded.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from selfdistill.config import RunConfig
from selfdistill.engine.optim import build_optimizer
from selfdistill.modalities.base import Modality
from selfdistill.objective.data2vec import Data2Vec
from selfdistill.originals import load_original, original_config, recognise
from selfdistill.renaming import to_theirs
from selfdistill.schedules import ema_decay
from selfdistill.types import Batch, Masks

State = dict[str, Tensor]


@dataclass
class Report:
    """Rows of the table; ``scale`` widens tolerances for other devices."""

    scale: float = 1.0
    rows: list[tuple[str, float, float, float, float]] = field(default_factory=list)

    def add(
        self, name: str, ours: Tensor, theirs: Tensor, tolerance: float, relative: str = ""
    ) -> None:
        """Compare. ``relative``: "" judges the absolute error, "each" each element's relative
        one, "max" the absolute error over the largest magnitude."""
        ours, theirs = ours.detach().cpu().double(), theirs.double()
        if ours.shape != theirs.shape:
            ours = ours.reshape(theirs.shape)
        error = (ours - theirs).abs()
        absolute = float(error.max()) if error.numel() else 0.0
        largest = float(theirs.abs().max()) if theirs.numel() else 0.0
        each = float((error / theirs.abs().clamp(min=1e-30)).max()) if error.numel() else 0.0
        over_largest = absolute / max(largest, 1e-30)
        judged = {"": absolute, "each": each, "max": over_largest}[relative]
        if not torch.isfinite(ours).all():
            judged = float("inf")
        self.rows.append((name, absolute, over_largest, judged, tolerance * self.scale))

    def exact(self, name: str, ours: Tensor, theirs: Tensor) -> None:
        """Compare with no tolerance at all."""
        self.add(name, ours, theirs, 0.0)

    def failed(self) -> list[str]:
        return [name for name, *_, judged, tolerance in self.rows if not judged <= tolerance]

    def show(self) -> None:
        width = max(len(row[0]) for row in self.rows)
        print(f"{'quantity':{width}}  max abs   max rel   judged    tolerance")
        for name, absolute, relative, judged, tolerance in self.rows:
            verdict = "" if judged <= tolerance else "  EXCEEDED"
            print(
                f"{name:{width}}  {absolute:.2e}  {relative:.2e}  {judged:.2e}  {tolerance:.0e}"
                f"{verdict}"
            )


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
    if not meta["kind"].startswith("v1_"):
        raise SystemExit(f"{meta['case']}: {meta['kind']} recordings are not supported")
    modality, _ = recognise(init_state(tensors))
    text = modality.name == "text"
    extra: dict[str, dict[str, Any]] = {
        "compat": {"padding_in_target_statistics": True, "padding_in_positions": True}
    }
    if text:
        notes = dict(n.split("=", 1) for n in meta["notes"].split(";")[0].split() if "=" in n)
        rows = tensors["init.encoder.sentence_encoder.embed_tokens.weight"].shape[0]
        extra["encoder"] = {"vocab_size": rows, "mask_id": int(notes["mask_idx"])}
    recorded = meta["optimizer"]
    extra["optim"] = {
        "lr": recorded["lr"],
        "betas": list(recorded["betas"]),
        "eps": recorded["eps"],
        "weight_decay": recorded["weight_decay"],
        "no_decay": [],
        "decay_one_dimensional": True,
    }
    config = original_config(modality, meta["config"], extra)
    make = text_batch if text else audio_batch
    mask_id = config.encoder.mask_id if text else 0
    inputs = {n.removeprefix("input."): t for n, t in tensors.items() if n.startswith("input.")}
    layout = meta.get("input_layout", {})
    stepped = "traj.loss" in tensors
    batches = [
        make(
            {
                n: t[step] if stepped and layout.get(n) == "per_step" else t
                for n, t in inputs.items()
            },
            mask_id,
        )
        for step in range(meta["steps"] if stepped else 1)
    ]
    return Recording(tensors, meta, modality, config, batches, FAIRSEQ)


def audio_batch(inputs: State, _: int) -> Batch:
    lengths = None
    if "padding_mask" in inputs and inputs["padding_mask"].any():
        lengths = (~inputs["padding_mask"].bool()).sum(1)
    return Batch(inputs["source"], lengths, Masks.from_bool(inputs["mask_indices"]))


def text_batch(inputs: State, mask_id: int) -> Batch:
    """The recorded student's input has ``<mask>`` in it, the teacher's has the original tokens,
    everywhere or (what the released pipeline did) at masked places only."""
    source, target = inputs["src_tokens"], inputs["target_tokens"]
    masked = source == mask_id
    tokens = torch.where(masked, target, source)
    lengths = tokens.ne(1).sum(1)
    return Batch(tokens, lengths, Masks.from_bool(masked), teacher_inputs=target)


def image_recording(tensors: State, meta: dict[str, Any]) -> Recording:
    settings = dict(meta["config"])
    if "classes" in settings:  # a fine-tuned classifier: settings of pretraining do not matter
        image = settings["img"]
        height, width = (image, image) if isinstance(image, int) else image
        patches = height // settings["patch"] * (width // settings["patch"])
        settings |= {
            "mlp_ratio": tensors["init.blocks.0.mlp.fc1.weight"].shape[0] / settings["dim"],
            "layer_scale": 1e-4,
            "target_layers": [settings["depth"] - 1],
            "num_mask": patches // 2,
            "min_block": 1,
            "max_block": None,
            "l1_beta": 0.0,
            "ema_decay_init": 0.9,
            "ema_decay": 0.99,
            "ema_start_at": 0,
        }
    modality, _ = recognise(init_state(tensors))
    recorded = meta.get("optimizer", {})
    extra: dict[str, dict[str, Any]] = {
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
    config = original_config(modality, settings, extra)
    if "batch.images" in tensors:
        pairs = zip(tensors["batch.images"], tensors["batch.mask"], strict=True)
    else:
        images = tensors["input.images"]
        patches = config.input.size[0] * config.input.size[1] // config.encoder.patch_size**2
        none = torch.zeros(len(images), patches, dtype=torch.bool)
        pairs = iter([(images, tensors.get("input.mask", none))])
    batches = [Batch(images, masks=Masks.from_bool(mask)) for images, mask in pairs]
    return Recording(tensors, meta, modality, config, batches, IMAGE)


def replay(rec: Recording, device: torch.device, report: Report) -> None:
    student = rec.part("init")
    if "head.weight" in student:
        replay_classifier(rec, device, report)
        return
    torch.manual_seed(0)
    model = Data2Vec(rec.modality, rec.config)
    load_original(model, student, rec.part("ema_init"))
    model.to(device).train()
    batches = [batch.to(device) for batch in rec.batches]
    if "out.loss" in rec.tensors:
        replay_forward(rec, model, batches[0], report)
        replay_gradients(rec, model, batches[0], report)
    if "traj.loss" in rec.tensors:
        replay_training(rec, model, batches, report)


def masked_rows(x: Tensor, masks: Masks) -> Tensor:
    """[B, N, D] to the rows of real masked tokens, row-major."""
    return x[masks.weight.bool()]


def replay_forward(rec: Recording, model: Data2Vec, batch: Batch, report: Report) -> None:
    out, tolerances, masks = rec.part("out"), rec.tolerances, batch.masks
    assert masks is not None
    encoder = model.student.encoder
    local = encoder.embed(batch.inputs, batch.lengths)
    targets = model.teacher(batch, local)
    hidden = model.student(local, masks)
    ours: dict[str, Tensor] = {
        "targets": masked_rows(masks.gather(targets), masks),
        "predictions": masked_rows(model.head(masks.gather(hidden)), masks),
        "student_encoder": hidden,
    }
    if "conv_features" in out:
        convs = encoder.local.get_submodule("convs")
        ours["conv_features"] = convs(batch.inputs[..., None]).mT
        ours["local_features"] = local.x
        ours["teacher_input"] = local.x
        if local.padding is not None:
            ours["feature_padding_mask"] = local.padding
    teacher = model.teacher.backbone
    if model.teacher.own_local:
        seen = batch.inputs if batch.teacher_inputs is None else batch.teacher_inputs
        teacher_local = teacher.encoder.embed(seen, batch.lengths)
        if "conv_features" not in out:
            ours["teacher_input"] = teacher.encoder.contextualise(teacher_local).x
    else:
        teacher_local = local
    with torch.no_grad():
        for index, output in enumerate(teacher.layers(teacher_local)):
            from_ffn = rec.config.objective.target_from == "ffn"
            ours[f"teacher_layer.{index}"] = output.ffn if from_ffn else output.x
            ours[f"teacher_block_out.{index}"] = output.x
    ours |= dict(student_layers(model, batch, rec.config))
    for name, theirs in sorted(out.items()):
        if name in ours:
            kind = tolerances.teacher_layer if "teacher" in name else tolerances.forward
            mine = ours[name]
            if mine.dim() == 3 and mine.shape[1] < theirs.shape[1]:
                theirs = theirs[:, : mine.shape[1]]  # fairseq adds a frame for speed
            report.add(f"out.{name}", mine, theirs, kind)
    step = model(batch)
    for name, moments in (("target_var", step.targets), ("pred_var", step.predictions)):
        if name in out:  # despite the name, a deviation
            report.add(f"out.{name}", torch.tensor(moments.std()), out[name], tolerances.forward)
    if "sample_size" in out:
        report.exact("out.sample_size", step.tokens, out["sample_size"])
        report.add("out.loss", step.loss, out["loss"], tolerances.loss, "each")
    else:
        report.add("out.loss", step.loss / step.tokens, out["loss"], tolerances.loss)


def student_layers(
    model: Data2Vec, batch: Batch, config: RunConfig
) -> Iterator[tuple[str, Tensor]]:
    """Block outputs of the student, by the names of both kinds of recordings."""
    encoder, trunk = model.student.encoder, model.student.trunk
    local = encoder.embed(batch.inputs, batch.lengths)
    assert batch.masks is not None
    for variant, tokens in (("nomask", local), ("mask", encoder.fill(local, batch.masks))):
        tokens = encoder.contextualise(tokens)
        x = tokens.x
        for index, output in enumerate(
            trunk.layers(tokens.x, tokens.padding, encoder.attention_bias())
        ):
            x = output.x
            yield f"student_{variant}.layer.{index}", x
            if variant == "mask":
                yield f"student_layer_out.{index}", x
        yield f"student_{variant}.final_norm", trunk.norm(x)


def replay_gradients(rec: Recording, model: Data2Vec, batch: Batch, report: Report) -> None:
    model.zero_grad()
    step = model(batch)
    (step.loss / step.tokens).backward()
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    gradients = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in named.items()}
    ours = original_names(rec, gradients)
    compare(report, "grad", ours, rec, rec.tolerances.gradient, rec.tolerances.gradient_relative)
    model.zero_grad()


def original_names(rec: Recording, tensors: Mapping[str, Tensor]) -> State:
    assert rec.modality.original is not None
    return to_theirs(tensors, rec.modality.original.names)


def compare(
    report: Report, prefix: str, ours: State, rec: Recording, tolerance: float, relative: str = ""
) -> None:
    """One row for the whole state (its worst tensor), and one for each that exceeds."""
    assert rec.modality.original is not None
    theirs = {
        n: t for n, t in rec.part(prefix).items() if t.is_floating_point() and n.find("version") < 0
    }
    missing = sorted(set(theirs) - set(ours))
    if missing:
        raise SystemExit(f"{prefix}: recorded, but not in the model: {missing}")
    single = Report(report.scale)
    for name in sorted(theirs):
        single.add(f"{prefix}.{name}", ours[name], theirs[name], tolerance, relative)
    worst = max(single.rows, key=lambda row: row[3])
    report.rows.append((f"{prefix}.* ({len(theirs)}, worst {worst[0]})", *worst[1:]))
    report.rows += [row for row in single.rows if row[0] in single.failed() and row is not worst]


def replay_training(rec: Recording, model: Data2Vec, batches: list[Batch], report: Report) -> None:
    config, tolerances = rec.config, rec.tolerances
    fairseq = rec.tolerances is FAIRSEQ
    optimizer = build_optimizer(model, config.optim)
    losses, decays, norms = [], [], []
    for number, batch in enumerate(batches, start=1):
        step = model(batch)
        loss = step.loss / step.tokens
        loss.backward()
        clip = config.optim.clip_norm or float("inf")
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), clip))
        if fairseq:
            # fairseq's Adam adds eps before the bias correction
            for group in optimizer.param_groups:
                group["eps"] = config.optim.eps / (1 - config.optim.betas[1] ** number) ** 0.5
        optimizer.step()
        optimizer.zero_grad()
        decay = ema_decay(number, config.teacher, config.compat.ema_epoch_steps)
        model.update_teacher(decay)
        losses.append(loss.detach())
        decays.append(decay)
    traj = rec.part("traj")
    report.add("traj.loss", torch.stack(losses), traj["loss"], tolerances.loss, "each")
    report.add(
        "traj.ema_decay", torch.tensor(decays, dtype=torch.float64), traj["ema_decay"], 1e-12
    )
    if "grad_norm" in traj:
        report.add("traj.grad_norm", torch.stack(norms), traj["grad_norm"], 1e-5, "each")
    state = dict(model.state_dict())
    trained = {n: p for n, p in state.items() if n.startswith(("student.", "head."))}
    compare(report, "final", original_names(rec, trained), rec, tolerances.final)
    replay_teacher(rec, state, model, report)


def replay_teacher(rec: Recording, state: State, model: Data2Vec, report: Report) -> None:
    """The averaged weights. A head that an original's teacher drags along is never used there and
    does not exist here."""
    assert rec.modality.original is not None
    prefix = rec.modality.original.teacher_prefix
    mine = {
        n.replace("teacher.backbone.", "student.", 1): p
        for n, p in state.items()
        if n.startswith("teacher.")
    }
    ours = {
        n.removeprefix(prefix): p
        for n, p in original_names(rec, mine).items()
        if n.startswith(prefix)
    }
    head = original_names(rec, {n: p for n, p in state.items() if n.startswith("head.")})
    recorded = {n: t for n, t in rec.tensors.items() if n.removeprefix("ema_final.") not in head}
    compare(report, "ema_final", ours, replace(rec, tensors=recorded), rec.tolerances.ema_final)
    index = rec.tensors.get("ema_final.rel_pos_bias.relative_position_index")
    if index is not None:
        buffers = dict(model.teacher.named_buffers())
        name = "backbone.encoder.relative_bias.relative_position_index"
        report.exact("ema_final.relative_position_index", buffers[name], index)


def replay_classifier(rec: Recording, device: torch.device, report: Report) -> None:
    """A fine-tuned image model: mean over patches of the last block, LayerNorm, linear layer."""
    state = rec.part("init")
    width = rec.config.model.width
    head = {n: state.pop(n) for n in ("fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias")}
    # what fine-tuning drops
    state |= {
        "mask_token": torch.zeros(1, 1, width),
        "norm.weight": torch.ones(width),
        "norm.bias": torch.zeros(width),
        "lm_head.weight": torch.zeros(width, width),
        "lm_head.bias": torch.zeros(width),
    }
    model = Data2Vec(rec.modality, rec.config)
    load_original(model, state)
    model.to(device).eval()
    states, _ = model.student.hidden_states(rec.batches[0].inputs.to(device))
    functional = torch.nn.functional
    weight, bias = head["fc_norm.weight"].to(device), head["fc_norm.bias"].to(device)
    pooled = functional.layer_norm(states[-1].mean(1), (width,), weight, bias, eps=1e-6)
    logits = functional.linear(pooled, head["head.weight"].to(device), head["head.bias"].to(device))
    report.add("out.pooled", pooled, rec.tensors["out.pooled"], rec.tolerances.forward)
    report.add("out.logits", logits, rec.tensors["out.logits"], rec.tolerances.forward)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(argv)
    device = torch.device(options.device)
    failed = 0
    for path in options.files:
        print(f"\n{path.name}")
        rec = recording(path)
        if rec is None:
            print("batches of the training runs beside it; nothing to compare")
            continue
        report = Report(scale=1.0 if device.type == "cpu" else 10.0)
        replay(rec, device, report)
        report.show()
        failed += bool(report.failed())
    print(f"\n{len(options.files) - failed} of {len(options.files)} files within their tolerances")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
