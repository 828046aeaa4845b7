"""Export an encoder as a folder that transformers loads."""

import json
from pathlib import Path
from typing import Any

from selfdistill.errors import UserError
from selfdistill.hub.card import Origin, model_card
from selfdistill.hub.reader import is_hub_folder
from selfdistill.hub.remote import check_push, push
from selfdistill.hub.writer import (
    check_free,
    hub_tensors,
    texts_of,
    why_not_exportable,
    write_folder,
)
from selfdistill.pretrained import Pretrained, Weights, load_pretrained

CARD = "README.md"


def export(source: str, out: Path, weights: Weights = "student", push_to: str = "") -> str:
    """Write a folder for transformers, and upload it if that is asked for.

    Args:
        source: as in ``load_pretrained``. A folder of transformers keeps its model card.
        out: the new folder; must not be there, or be empty.
        weights: whose.
        push_to: USER/NAME on the Hub; empty: nowhere.

    Returns:
        The address of the uploaded commit, or nothing.

    Raises:
        UserError: nothing there that can be loaded, transformers cannot hold it, or ``out`` holds
            something.
        SelfdistillError: it cannot be written or uploaded.
    """
    check_free(out)
    if push_to:
        check_push(push_to)
    found = load_pretrained(source, weights)
    hub = found.modality.hub
    obstacle = why_not_exportable(found.modality, found.config)
    if hub is None or obstacle:
        raise UserError(f"export: {found.source} cannot be loaded by transformers: {obstacle}")
    tensors = hub_tensors(hub, found.config, dict(found.backbone.named_parameters()))
    parameters = sum(tensor.numel() for tensor in tensors.values())
    if is_hub_folder(found.source):
        kept = found.source / CARD
        card = kept.read_text(encoding="utf-8") if kept.is_file() else ""
    else:
        config = found.modality.attach(found.config, Path())
        card = model_card(hub, config, _origin(found), parameters)
    write_folder(out, tensors, texts_of(hub, found.config, found.companions, card))
    return push(out, push_to) if push_to else ""


def _origin(found: Pretrained) -> Origin:
    run, step = found.companions, found.step or 0
    evaluation = _json(run / "eval.json")
    if evaluation.get(found.config.modality, {}).get("step") != step:
        evaluation = {}
    return Origin(found.weights, step, _last_loss(run / "metrics.jsonl", step), evaluation)


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _last_loss(path: Path, step: int) -> float | None:
    if not path.is_file():
        return None
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    # a run that still writes, or was killed, may end in half a line
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    losses = [row["loss"] for row in rows if "loss" in row and row["step"] <= step]
    return losses[-1] if losses else None
