"""What is in a data set, in words and in pictures."""

import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from selfdistill.config import DataConfig, RunConfig
from selfdistill.config_files.load import build_config, load_config
from selfdistill.config_files.recipes import find_config, recipe_names
from selfdistill.data.elsewhere.address import Access
from selfdistill.data.locations import Location, resolve
from selfdistill.data.shards import ShardSet, training_shards
from selfdistill.durable import write_atomically
from selfdistill.errors import UserError, errors_of
from selfdistill.folders import as_text
from selfdistill.inspection.facts import look
from selfdistill.inspection.look import Subject
from selfdistill.inspection.page import page, words
from selfdistill.inspection.sheet import Part, sheet
from selfdistill.modalities.base import Modality, load_modality, modality_names
from selfdistill.modalities.picture import SamplePicture
from selfdistill.outputs import check_output
from selfdistill.plots import pixels
from selfdistill.redaction import all_redacted
from selfdistill.run_data import batch_sizes
from selfdistill.run_folder.layout import CONFIG

SUFFIXES = (".png", ".svg", ".html")
CONFIGS = (".yaml", ".yml")
_KEY = "SHARDS"


def inspect_data(
    names: Sequence[str],
    out: Path | None = None,
    tensorboard: Path | None = None,
    *,
    samples: int = 12,
    seed: int = 0,
    modality: str = "",
) -> str:
    """Look at shards, or at what a config trains on.

    Args:
        names: a config (``.yaml``, or the name of a recipe) and overrides of it, or shards as
            ``data.train`` names them.
        out: a picture or page of some samples, ``.png``, ``.svg`` or ``.html``; it is replaced.
        tensorboard: a folder to write the picture to, for TensorBoard.
        samples: to be shown, of each modality.
        seed: of all that is drawn.
        modality: which of the config's, or of the shards; empty: all of them, or as the names of
            the members tell.

    Returns:
        A table, in ASCII as far as the names in it are.

    Raises:
        UserError: nothing of this kind can be found.
        SelfdistillError: a shard cannot be read.
    """
    if samples < 1:
        raise UserError(f"--samples: {samples} must be 1 or more")
    if out is not None:
        check_output(out, "--out", SUFFIXES)
    if _is_config(names[0]):
        config = load_config(find_config(names[0]), names[1:], load_modality)
        subjects = _of_config(config, modality)
    else:
        subjects = [_of_shards(names, modality)]
    parts = [(subject, look(subject, samples, seed)) for subject in subjects]
    if out is not None:
        _write(out, " ".join(all_redacted([*map(as_text, names)])), parts)
    if tensorboard is not None:
        _write_board(tensorboard, parts)
    return words(parts)


def _is_config(name: str) -> bool:
    """Whether a name is that of a config, or like a recipe's."""
    if name.lower().endswith(CONFIGS) or os.path.exists(name) or set(name) & set("*?[{:"):
        return name.lower().endswith(CONFIGS)
    return bool(difflib.get_close_matches(name, recipe_names(), n=1, cutoff=0.8))


def _of_config(config: RunConfig, only: str) -> list[Subject]:
    parts = config.parts()
    if only and only not in parts:
        raise UserError(f"--modality: the config has no '{only}'; it has {', '.join(parts)}")
    sizes = batch_sizes(config, 1)
    subjects = []
    for name, part in parts.items():
        if only in ("", name):
            with errors_of(name, parts):
                modality = load_modality(part.modality)
                picture = _picture(modality, part)
                shards = training_shards(part.data, picture.extensions)
            size = sizes[name] // config.train.accumulate
            subjects.append(Subject(name, modality, picture, shards, part, size))
    return subjects


def _named(name: str) -> list[Location]:
    """The shards of that name; of a run, which has none, it is told where its config is."""
    try:
        return resolve([name], _KEY)
    except UserError as error:
        if os.path.exists(config := os.path.join(name, CONFIG)):
            raise UserError(
                f"{_KEY}: folder '{name}' has no shards but a config, as runs have; "
                f"name that: '{config}'"
            ) from error
        raise


def _of_shards(names: Sequence[str], wanted: str) -> Subject:
    locations = [location for name in names for location in _named(name)]
    candidates: dict[str, tuple[Modality, SamplePicture]] = {}
    for name in [wanted] if wanted else modality_names():
        modality = load_modality(name)
        if wanted or modality.picture is not None:
            # a run that keeps nothing
            config = build_config({"modality": name, "run_dir": os.devnull}, load_modality)
            candidates[name] = modality, _picture(modality, config)
    name = wanted or _told(locations, {n: p.extensions for n, (_, p) in candidates.items()})
    modality, picture = candidates[name]
    access = Access.of(DataConfig())
    shards = ShardSet(locations, picture.extensions, _KEY, access)
    return Subject(modality.name, modality, picture, shards)


def _told(locations: Sequence[Location], known: Mapping[str, Sequence[str]]) -> str:
    """The modality that the first shard has most bytes of, or most members where all are empty;
    captions come beside pictures, and single members may be empty."""
    every = list(dict.fromkeys(e for extensions in known.values() for e in extensions))
    shards = ShardSet(locations[:1], every, _KEY, quiet=True)
    members = shards.indexes[0].members

    def amount(name: str) -> tuple[int, int]:
        numbers = [shards.extensions.index(extension) for extension in known[name]]
        sizes = members["size"][np.isin(members["extension"], numbers)]
        return int(sizes.sum(dtype=np.int64)), len(sizes)

    return max(known, key=amount)


def _picture(modality: Modality, config: RunConfig) -> SamplePicture:
    if modality.picture is None:
        raise UserError(
            f"modality: {modality.name} declares no picture, which inspect needs; "
            "modalities/base.py says how"
        )
    return modality.picture(config)


def _write(out: Path, title: str, parts: Sequence[Part]) -> None:
    kind = out.suffix.lower()[1:]
    content = page(title, parts) if kind == "html" else sheet(parts, kind)
    write_atomically(out, content)


def _write_board(folder: Path, parts: Sequence[Part]) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as board:
        for subject, findings in parts:
            png = sheet([(subject, findings)], "png")
            board.add_image(f"inspect/{subject.name}", pixels(png), dataformats="HWC")
