"""Export an encoder as a folder that transformers loads."""

from collections.abc import Mapping
from math import isfinite
from pathlib import Path

from selfdistill.errors import UserError
from selfdistill.hub.card import Origin, model_card
from selfdistill.hub.reader import is_hub_folder
from selfdistill.hub.remote import check_push, push
from selfdistill.hub.writer import (
    appearing,
    check_free,
    hub_tensors,
    texts_of,
    why_not_exportable,
    write_folder,
)
from selfdistill.outputs import say
from selfdistill.pretrained import Pretrained, Weights, load_all
from selfdistill.run_folder.files import MetricsFile, read_result

CARD = "README.md"


def export(
    source: str, out: Path, weights: Weights = "student", push_to: str = "", modality: str = ""
) -> list[str]:
    """Write a folder for transformers, and upload it if that is asked for.

    Args:
        source: as in ``load_pretrained``. A folder of transformers keeps its model card.
        out: the new folder; must not be there, or be empty. Of a run over several modalities it
            gets a folder for each that transformers can hold, unless one is named.
        weights: whose.
        push_to: USER/NAME on the Hub; empty: nowhere.
        modality: whose encoder, of a run over several; empty: of all.

    Returns:
        What was written and what could not be, a line each.

    Raises:
        UserError: nothing there that can be loaded, transformers can hold none of it, or ``out``
            holds something.
        SelfdistillError: it cannot be written or uploaded.
    """
    check_free(out)
    if push_to:
        check_push(push_to)
    found = load_all(source, weights, modality)
    if push_to and len(found) > 1:
        raise UserError(
            f"--push: {push_to} can hold one encoder, and {source} has {', '.join(found)}; name "
            "one with --modality"
        )
    for one in found.values():
        if one.beyond:
            raise UserError(f"export: {one.source}: {one.beyond}; copy the folder instead")
    obstacles = {name: why_not_exportable(one.modality, one.config) for name, one in found.items()}
    if all(obstacles.values()):
        where = next(iter(found.values())).source
        reasons = "; ".join(_whose(name, found) + reason for name, reason in obstacles.items())
        raise UserError(f"export: {where} cannot be loaded by transformers: {reasons}")
    if len(found) == 1:
        (one,) = found.values()
        _write(one, out)
        if not push_to:
            return [f"written to {out}"]
        say(f"written to {out}, uploading it to {push_to}")
        return [f"written to {out}, uploaded to {push(out, push_to)}"]
    # all or none: the command is refused where there are some already
    with appearing(out) as folder:
        for name, one in found.items():
            if not obstacles[name]:
                _write(one, folder / name)
    return [
        f"{name} is left out: {obstacles[name]}" if obstacles[name] else f"written to {out / name}"
        for name in found
    ]


def _whose(name: str, found: Mapping[str, Pretrained]) -> str:
    return f"{name}: " if len(found) > 1 else ""


def _write(found: Pretrained, out: Path) -> None:
    hub = found.modality.hub
    assert hub is not None, "it is exportable"
    tensors = hub_tensors(hub, found.config, dict(found.backbone.named_parameters()))
    parameters = sum(tensor.numel() for tensor in tensors.values())
    if is_hub_folder(found.source):
        kept = found.source / CARD
        card = kept.read_text(encoding="utf-8") if kept.is_file() else ""
    else:
        config = found.modality.attach(found.config, Path())
        card = model_card(hub, config, _origin(found), parameters)
    write_folder(out, tensors, texts_of(hub, found.config, found.companions, card))


def _origin(found: Pretrained) -> Origin:
    run, step = found.companions, found.step or 0
    (name,) = found.config.parts()
    own = read_result(run).get(name, {})
    # which is made of the student
    is_own = own.get("step") == step and found.weights == "student"
    evaluation = {name: own} if is_own else {}
    key = f"{name}/loss" if found.trained_with else "loss"
    losses = [row[key] for row in MetricsFile(run).read() if key in row and row["step"] <= step]
    loss = losses[-1] if losses and isfinite(losses[-1]) else None
    return Origin(found.weights, step, loss, evaluation, found.trained_with)
