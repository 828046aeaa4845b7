"""Going on from a checkpoint: which one, and whether config and data still fit it."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from selfdistill.config import RunConfig, dotted
from selfdistill.config_files.load import plain_config
from selfdistill.data.loader import Source
from selfdistill.engine.checkpoint_files import (
    find_checkpoint,
    newest_checkpoint,
    read_state,
)
from selfdistill.engine.together import on_all
from selfdistill.errors import UserError, errors_of
from selfdistill.pretrained import run_folder
from selfdistill.run_folder.layout import CHECKPOINTS, CONFIG

logger = logging.getLogger(__name__)

_IGNORED = {"run_dir", "resume"}
_REFUSED = {
    "strategy",
    "model.width",
    "model.depth",
    "model.heads",
    "model.mlp_ratio",
    "model.norm_order",
    "model.key_bias",
    "objective.head_layers",
    "teacher.scope",
    "seed",
    "train.batch_size",
    "data.sampling_weight",
    "data.batch_length",
}
_TAKEN = {"decoder.input_dropout", "decoder.mask_noise_std"}
_UNLIKE = ", in another order, or of other names, sizes or lengths"


def checkpoint_to_resume(config: RunConfig, must_resume: bool) -> Path | None:
    """The checkpoint to go on from; None: start afresh.

    Args:
        config: ``resume`` says which.
        must_resume: refuse to start afresh.

    Raises:
        UserError: there is no such checkpoint, or one that is in the way.
    """
    run = Path(config.run_dir)
    newest = newest_checkpoint(run / CHECKPOINTS)
    if config.resume not in ("auto", "never"):
        named = find_checkpoint(Path(config.resume))
        if newest is None:
            return named
        if named.resolve().parent == newest.resolve().parent and named.name != newest.name:
            raise UserError(
                f"resume: {named} is older than {newest.name} of the same run, which would be "
                "taken for what comes next; remove the newer checkpoints, or go on in another "
                "run_dir"
            )
        _check_origin(newest, named)
        return newest  # this run has begun from there already
    if newest is not None and config.resume == "never":
        raise UserError(
            f"resume: never, but {run} holds {newest.name}; choose another run_dir, or resume=auto "
            "to go on"
        )
    if newest is None and must_resume:
        raise UserError(f"--resume: {run} holds no complete checkpoint; leave it out to start")
    return newest


def agreed_checkpoint(
    config: RunConfig, accelerator: Accelerator, must_resume: bool
) -> Path | None:
    """The checkpoint that all processes go on from; see ``checkpoint_to_resume``.

    The main one looks for it: it alone knows that no other run writes to the folder any more, and
    what another machine sees of a folder may be older.

    Raises:
        UserError: on all processes.
    """
    is_main = accelerator.is_main_process
    found = on_all(
        accelerator, lambda: checkpoint_to_resume(config, must_resume) if is_main else None
    )
    path: Path | None
    (path,) = broadcast_object_list([found])
    return path


def is_of_another_run(checkpoint: Path, config: RunConfig) -> bool:
    home = run_folder(checkpoint)
    return (home / CONFIG).exists() and home.resolve() != Path(config.run_dir).resolve()


def _check_origin(newest: Path, named: Path) -> None:
    mine, theirs = read_state(newest), read_state(named)
    different, _ = compare_configs(theirs["config"], mine["config"])
    if any(_are_others(data, theirs["data"].get(name, {})) for name, data in mine["data"].items()):
        different.append("the samples of data.train")
    if different:
        raise UserError(
            f"resume: {newest} is of another run than {named} ({'; '.join(different)}); choose "
            "another run_dir to go on from there, or resume=auto to go on with what is in this one"
        )


def check_config(old: RunConfig, new: RunConfig) -> None:
    """Refuse (``UserError``) to resume what would be another model or another data order; warn of
    the rest.

    Args:
        old: of the checkpoint.
        new: to go on with.
    """
    refused, changed = compare_configs(plain_config(old), plain_config(new))
    if refused:
        raise UserError(
            f"resume: the checkpoint was made with other values: {'; '.join(refused)}. Change them "
            "back, or choose another run_dir"
        )
    for line in changed:
        logger.warning("resumed with a changed value: %s", line)


def check_data(old: Mapping[str, Mapping[str, Any]], sources: Mapping[str, Source]) -> None:
    """Refuse (``UserError``) to resume with other samples: what was seen and what is to come would
    be mixed up.

    Args:
        old: fingerprints of the checkpoint, by modality.
        sources: to go on with.
    """
    for name, source in sources.items():
        before, now = old[name], source.fingerprint()
        if not _are_others(before, now):
            continue
        with errors_of(name, sources):
            raise UserError(
                "data.train: holds {samples} samples in {shards} shards".format(**now)
                + ", but {samples} in {shards} when the checkpoint was made".format(**before)
                + ("" if before["samples"] != now["samples"] else _UNLIKE)
                + "; put back what there was, or start on the new data in another run_dir with "
                "init_from"
            )


def _are_others(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether fingerprints are of other samples. What one of them does not tell, as those of
    earlier versions, is no difference."""
    return any(before[key] != now[key] for key in before.keys() & now.keys())


Leaves = dict[tuple[str, str], Any]
"""Values by whose they are (a prefix of the key) and the key in a run over one modality."""


def _leaves(config: Mapping[str, Any]) -> Leaves:
    found = {("", key): value for key, value in dotted({**config, "modalities": {}})}
    for name, part in (config.get("modalities") or {}).items():
        found |= {(f"modalities.{name}.", key): value for key, value in dotted(part)}
    return found


def _is_refused(key: str, old: Any, new: Any) -> bool:
    if key == "model.layer_scale":
        return bool(old) != bool(new)  # 0 has no gains at all; others differ at the start only
    return key in _REFUSED or (key.startswith(("encoder.", "decoder.")) and key not in _TAKEN)


def compare_configs(old: dict[str, Any], new: dict[str, Any]) -> tuple[list[str], list[str]]:
    """What differs between a checkpoint's config and the one to go on with.

    Args:
        old: nested plain dicts, as in ``config.yaml``.
        new: likewise.

    Returns:
        Two lists of lines ``key: old -> new`` in the keys' order: changes that a resumed run
        cannot take (shapes of the weights, order of the data), and those that it can.
    """
    mine, yours = _modalities(old), _modalities(new)
    if set(mine) != set(yours):
        key = "modality" if len(mine) == len(yours) == 1 else "modalities"
        return [f"{key}: {', '.join(mine)} -> {', '.join(yours)}"], []
    before, after = _leaves(old), _leaves(new)
    refused: list[str] = []
    changed: list[str] = []
    for whose, key in sorted(before.keys() | after.keys()):
        was, now = (leaves.get((whose, key), "unset") for leaves in (before, after))
        if was != now and key not in _IGNORED:
            lines = refused if _is_refused(key, was, now) else changed
            lines.append(f"{whose}{key}: {was} -> {now}")
    return refused, changed


def _modalities(config: Mapping[str, Any]) -> list[str]:
    return list(config.get("modalities") or [config.get("modality", "unset")])
