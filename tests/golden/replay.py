"""Replay recordings of the original implementations through the package's own modules.

    python tests/golden/replay.py FILE... [--device cuda]

Each file holds an original's weights, inputs, masks, targets, predictions, loss, gradients, and a
ten-step training run (README.md beside this file). One row per quantity is printed: its largest
absolute and relative error, what is compared with the tolerance, and the tolerance. The exit code
is 1 if one is exceeded.
"""

import argparse
import math
import sys
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path

import torch
from recording import FAIRSEQ, Recording, State, recording
from torch import Tensor

from selfdistill.engine.optim import build_optimizer
from selfdistill.modalities.backbone import Backbone
from selfdistill.models.decoder import Decoder
from selfdistill.models.trunk import run_blocks
from selfdistill.objective.data2vec import Data2Vec
from selfdistill.objective.state import of_predictor, of_teacher
from selfdistill.originals import load_original, teacher_prefix, trained_part
from selfdistill.renaming import to_theirs
from selfdistill.schedules import ema_decay
from selfdistill.types import Batch, Masks, Tokens


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


def replay(rec: Recording, device: torch.device, report: Report) -> None:
    student = rec.part("init")
    if "head.weight" in student:
        replay_classifier(rec, device, report)
        return
    torch.manual_seed(0)
    model = Data2Vec(rec.config)
    load_original(model, student, rec.part("ema_init"))
    model.to(device).train()
    batches = [batch.to(device) for batch in rec.batches]
    if "out.loss" in rec.tensors:
        replay_forward(rec, model, batches[0], report)
        replay_gradients(rec, model, batches[0], report)
    if "traj.loss" in rec.tensors:
        replay_training(rec, model, batches, report)


def replay_forward(rec: Recording, model: Data2Vec, batch: Batch, report: Report) -> None:
    out, tolerances = rec.part("out"), rec.tolerances
    ours = forward_tensors(rec, model, batch)
    for name, theirs in sorted(out.items()):
        if name in ours:
            kind = tolerances.teacher_layer if "teacher" in name else tolerances.forward
            mine = ours[name]
            if mine.dim() == 3 and mine.shape[1] < theirs.shape[1]:
                theirs = theirs[:, : mine.shape[1]]  # fairseq adds a frame for speed
            report.add(f"out.{name}", mine, sorted_rows(name, theirs, out), kind)
    step = model({rec.modality.name: batch})[rec.modality.name]
    for name, moments in (("target_var", step.targets), ("pred_var", step.predictions)):
        if name in out:  # despite the name, a deviation
            report.add(f"out.{name}", torch.tensor(moments.std()), out[name], tolerances.forward)
    if "sample_size" in out:
        report.exact("out.sample_size", step.tokens, out["sample_size"])
        report.add("out.loss", step.loss, out["loss"], tolerances.loss, "each")
        if "loss_cls" in out:
            rest = replace(rec.config.objective, cls_loss=0.0)
            model.parts[rec.modality.name] = replace(rec.config, objective=rest)
            regression = model({rec.modality.name: batch})[rec.modality.name].loss
            model.parts[rec.modality.name] = rec.config
            report.add("out.loss_cls", step.loss - regression, out["loss_cls"], 1e-4, "each")
    else:
        report.add("out.loss", step.loss / step.tokens, out["loss"], tolerances.loss)


def sorted_rows(name: str, theirs: Tensor, out: State) -> Tensor:
    """2.0's student keeps tokens in an order that nobody can repeat; ours leaves them in place."""
    if "ids_keep" not in out or not name.startswith("student_"):
        return theirs
    order = out["ids_keep"].long().argsort(1)  # [R, V]
    prefix = theirs.shape[1 if theirs.dim() < 4 else 2] - order.shape[1]
    order = torch.cat([torch.arange(prefix).expand(len(order), -1), order + prefix], dim=1)
    if theirs.dim() == 4:  # logits, rows and columns
        order = order[:, None, :, None]
        theirs = theirs.gather(2, order.expand_as(theirs))
        return theirs.gather(3, order.mT.expand_as(theirs))
    if theirs.dim() == 2:
        return theirs.gather(1, order)
    return theirs.gather(1, order[..., None].expand_as(theirs))


def forward_tensors(rec: Recording, model: Data2Vec, batch: Batch) -> State:
    """What the forward pass makes on its way, by the recordings' names."""
    name, masks = rec.modality.name, batch.masks
    assert masks is not None
    student, predictor = model.student[name], model.predictors[name]
    local = student.encoder.embed(batch.inputs, batch.lengths)
    every = model.teacher(name, batch, local, model.student)
    prediction = predictor(student, local, masks)
    real = masks.weight.bool()
    ours = {
        "local_features": local.x,
        "targets_all": every,
        "targets": masks.gather(every)[real],  # rows of real masked tokens
        "predictions": prediction.masked[real],
        **teacher_tensors(rec, model, batch, local),
    }
    if name == "audio":
        convs = student.encoder.get_submodule("local.convs")
        ours["conv_features"] = convs(batch.inputs[..., None]).mT
    if local.padding is not None:
        ours["feature_padding_mask"] = ours["teacher_padding_mask"] = local.padding
    if name == "text" and rec.config.strategy == "visible":
        embeddings = student.encoder.locate(local).x  # which 2.0 norms before anything else
        ours["local_features"] = student.encoder.get_submodule("norm")(embeddings)
        ours["teacher_local_features"] = ours["local_features"]
    if rec.config.objective.cls_loss:
        ours["cls_predictions"] = prediction.prefix[:, -1]
        ours["cls_targets"] = masks.repeat(every.mean(1))
    if rec.config.strategy == "visible":
        return ours | visible_tensors(model, name, local, masks)
    return ours | dense_tensors(student, local, masks)


def teacher_tensors(rec: Recording, model: Data2Vec, batch: Batch, local: Tokens) -> State:
    name, teacher = rec.modality.name, model.teacher
    owner = teacher if name in teacher.encoders else model.student
    backbone = Backbone(owner.encoder(name), teacher.trunk)
    if rec.config.teacher.scope == "all":
        seen = batch.inputs if batch.teacher_inputs is None else batch.teacher_inputs
        local = backbone.encoder.embed(seen, batch.lengths)
    ours = {"teacher_local_features": local.x, "teacher_input": local.x}
    entered = backbone.encoder.contextualise(local)
    if name == "text" and rec.config.strategy == "dense":
        ours["teacher_input"] = entered.x
    places = torch.arange(local.x.shape[1], device=local.x.device)[None]
    biases = backbone.encoder.attention_biases(places)
    if len(biases) == 1:
        ours["teacher_alibi"] = biases[0]
    ours["teacher_context"] = entered.x
    from_ffn = rec.config.objective.target_from == "ffn"
    with torch.no_grad():
        for x, _ in run_blocks(backbone.encoder.prenet, entered.x, entered.padding, biases):
            ours["teacher_context"] = x
        for index, output in enumerate(backbone.layers(local)):
            ours[f"teacher_layer.{index}"] = output.ffn if from_ffn else output.x
            ours[f"teacher_block_out.{index}"] = output.x
    return ours


def visible_tensors(model: Data2Vec, name: str, local: Tokens, masks: Masks) -> State:
    student, predictor = model.student[name], model.predictors[name]
    prefix = student.encoder.num_prefix_tokens
    tokens = student.encoder.enter(student.encoder.keep(local, masks))
    ours = {"student_context": tokens.x}
    assert tokens.places is not None
    biases = student.encoder.attention_biases(tokens.places)
    if len(biases) == 1:
        ours["student_alibi"] = biases[0]
    if tokens.padding is not None:
        ours["student_padding_mask"] = tokens.padding
    x, own = tokens.x, len(student.encoder.prenet)
    for index, output in enumerate(student.run(tokens)):
        x = output.x
        ours[f"student_layer_out.{index - own}"] = x
        if index == own - 1:
            ours["student_context"] = x
    decoder = predictor.get_submodule("decoder")
    assert isinstance(decoder, Decoder)
    filled = decoder.fill_in(x[:, prefix:], masks)
    padding = None if local.padding is None else masks.repeat(local.padding)
    whole = decoder.convs(filled, padding if decoder.clears_padding else None)
    ours["decoder_input"], ours["decoder_output"] = filled, decoder.projection(whole)
    return ours


def dense_tensors(student: Backbone, local: Tokens, masks: Masks) -> State:
    """The student's blocks, by the names of both kinds of recordings."""
    encoder, prefix = student.encoder, student.encoder.num_prefix_tokens
    ours = {}
    for variant, tokens in (("nomask", local), ("mask", encoder.fill(local, masks))):
        for index, output in enumerate(student.run(encoder.contextualise(tokens))):
            x = output.x
            ours[f"student_{variant}.layer.{index}"] = x
            if variant == "mask":
                ours[f"student_layer_out.{index}"] = x
        ours[f"student_{variant}.final_norm"] = student.trunk.norm(x)
    ours["student_encoder"] = student.trunk.norm(x)[:, prefix:]
    return ours


def replay_gradients(rec: Recording, model: Data2Vec, batch: Batch, report: Report) -> None:
    name = rec.modality.name
    model.zero_grad()
    step = model({name: batch})[name]
    (step.loss / step.tokens).backward()
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    gradients = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in named.items()}
    ours = to_theirs(trained_part(gradients, name), rec.original.names)
    compare(report, "grad", ours, rec, rec.tolerances.gradient, rec.tolerances.gradient_relative)
    model.zero_grad()


def compare(
    report: Report, prefix: str, ours: State, rec: Recording, tolerance: float, relative: str = ""
) -> None:
    """One row for the whole state (its worst tensor), and one for each that exceeds."""
    ignored = [f"*{pattern}" for pattern in rec.original.ignored]
    theirs = {
        n: t
        for n, t in rec.part(prefix).items()
        # a teacher's names lack their beginning
        if t.is_floating_point() and not any(fnmatch(f".{n}", p) for p in ("*.version", *ignored))
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
    config, tolerances, name = rec.config, rec.tolerances, rec.modality.name
    fairseq = rec.tolerances is FAIRSEQ
    optimizer = build_optimizer(model, config.optim)
    losses, decays, norms = [], [], []
    for number, batch in enumerate(batches, start=1):
        step = model({name: batch})[name]
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
        if decay < 1:  # else the originals leave even what they copy
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
    trained = to_theirs(trained_part(state, name), rec.original.names)
    rounding = rec.meta.get("fp32_vs_fp64", {})  # how far it alone moved the original's weights
    final = max(tolerances.final, 4 * rounding.get("final", 0.0))
    compare(report, "final", trained, rec, final)
    # a teacher is as uncertain as what it took over of the student
    taken = 1.0 - math.prod(decays)
    replay_teacher(rec, state, model, report, max(tolerances.ema_final, taken * final))


def replay_teacher(
    rec: Recording, state: State, model: Data2Vec, report: Report, tolerance: float
) -> None:
    """The averaged weights. A head that an original's teacher drags along is never used there and
    does not exist here."""
    name, names = rec.modality.name, rec.original.names
    prefix = teacher_prefix(rec.part("ema_init") or rec.part("ema_final"), rec.original)
    averaged = to_theirs(of_teacher(state, name), names)
    ours = {n.removeprefix(prefix): p for n, p in averaged.items() if n.startswith(prefix)}
    head = to_theirs(of_predictor(state, name), names)
    recorded = {n: t for n, t in rec.tensors.items() if n.removeprefix("ema_final.") not in head}
    compare(report, "ema_final", ours, replace(rec, tensors=recorded), tolerance)
    index = rec.tensors.get("ema_final.rel_pos_bias.relative_position_index")
    if index is not None:
        buffers = dict(model.teacher.named_buffers())
        buffer = buffers[f"encoders.{name}.relative_bias.relative_position_index"]
        report.exact("ema_final.relative_position_index", buffer, index)


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
    model = Data2Vec(rec.config)
    load_original(model, state)
    model.to(device).eval()
    states, _ = model.student[rec.modality.name].hidden_states(rec.batches[0].inputs.to(device))
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
        # TF32 convolutions, a GPU's default, would exceed every tolerance
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            replay(rec, device, report)
        report.show()
        failed += bool(report.failed())
    print(f"\n{len(options.files) - failed} of {len(options.files)} files within their tolerances")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
