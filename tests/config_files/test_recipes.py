"""Recipes are found by name, say what they need, and say it truly."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from selfdistill.bench.flops import step_flops
from selfdistill.cli import main
from selfdistill.config import RunConfig
from selfdistill.config_files.load import load_config
from selfdistill.config_files.recipes import FACTS, FOLDER, find_config, read_recipe, recipe_names
from selfdistill.errors import UserError
from selfdistill.masking import clone_keys, random_tokens, row_keys, span_masks
from selfdistill.modalities.base import load_modality
from selfdistill.models.flops import Counts
from selfdistill.types import Batch, Masks

ROOT = Path(__file__).resolve().parents[2]
NAMES = recipe_names()
CLIP_SECONDS = {"audio/base_audioset": 10.0, "audio/data2vec2_large": 20.0}
"""Others have LibriSpeech's mean."""


def test_the_package_holds_the_recipes_of_the_repository() -> None:
    files = sorted((ROOT / "configs").rglob("*.yaml"))
    assert len(NAMES) == len(files) > 20
    for name in NAMES:
        wanted = (ROOT / "configs" / f"{name}.yaml").read_bytes()
        assert (FOLDER / f"{name}.yaml").read_bytes() == wanted


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_says_what_it_needs_and_how_it_is_run(name: str) -> None:
    recipe = read_recipe(name)
    assert recipe.title
    assert tuple(recipe.facts) == FACTS
    assert all(text.endswith(".") for text in recipe.facts.values())
    comments = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").partition("\nmod")[0]
    assert f"#   selfdistill pretrain {name}\n" in comments


@pytest.mark.parametrize("given", ["image/sample", "image/sample.yaml"])
def test_a_recipe_is_found_by_name(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_config(given) == FOLDER / "image" / "sample.yaml"


def test_a_file_comes_before_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "image").mkdir()
    (tmp_path / "image" / "sample").write_text("modality: image\n")
    assert find_config("image/sample") == Path("image/sample")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("image/smaple", "did you mean image/sample or"),
        ("configs/audio/samples.yaml", "did you mean audio/sample or"),
        ("nothing-like-it-at-all", r"no recipe of that name \(selfdistill recipes lists them\)"),
    ],
)
def test_names_like_a_wrong_one_are_told(
    given: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"config: there is no file '{given}', .*{told}"):
        find_config(given)


def test_a_folder_is_no_config(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config: '.*' is a folder; name a file, such as a run's"):
        find_config(str(tmp_path))


def test_a_name_may_be_too_long_to_look_for() -> None:
    with pytest.raises(UserError, match=r"config: (cannot read|there is no file) 'x{300}'"):
        find_config("x" * 300)


def test_the_command_lists_them_and_prints_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    listed = capsys.readouterr().out
    assert [line for line in listed.splitlines() if re.fullmatch(r"\w+/\w+", line)] == NAMES
    assert listed.count("  Hardware: ") == len(NAMES)
    assert max(map(len, listed.splitlines())) <= 100
    assert main(["recipes", "text/base"]) == 0
    printed = capsys.readouterr().out
    assert printed == (FOLDER / "text" / "base.yaml").read_text(encoding="utf-8")
    assert yaml.safe_load(printed)["modality"] == "text"


def masks_of(config: RunConfig, rows: int, seconds: float) -> tuple[tuple[int, ...], Masks]:
    """The shape of a batch of this many samples, and masks as training draws them."""
    keys = row_keys(0, np.arange(rows))
    if config.modality == "text":
        length, mask = config.input.max_tokens, config.mask
        keys, lengths = clone_keys(keys, mask.num_masks), np.full(rows * mask.num_masks, length)
        if mask.kind == "tokens":
            masked = random_tokens(keys, lengths, length, prob=mask.mask_prob)
        else:
            masked = span_masks(
                keys, lengths, length, prob=mask.mask_prob, length=mask.mask_length, cut_at_end=True
            )
        return (rows, length), Masks.from_bool(masked)
    pipeline = load_modality(config.modality).build_pipeline(config)
    shapes: dict[str, Callable[[], tuple[int, ...]]] = {
        "image": lambda: (3, *config.input.size),
        "audio": lambda: (int(seconds * config.input.sampling_rate),),
    }
    shape = shapes[config.modality]()
    batch: Batch = pipeline.collate([np.zeros(shape, np.float32)] * rows, keys)
    assert batch.masks is not None
    return (rows, *shape), batch.masks


@pytest.mark.parametrize("name", [name for name in NAMES if "sample" not in name])
def test_the_operations_of_a_recipe_are_those_of_the_formulas(name: str) -> None:
    needed = ["input.tokenizer=unused.json"] if name.startswith("text") else []
    config = load_config(find_config(name), needed, load_modality)
    seconds, rows = CLIP_SECONDS.get(name, 12.3), 4
    shape, masks = masks_of(config, rows, seconds)
    per_step = config.data.batch_length / seconds or config.train.batch_size
    prefix = getattr(config.encoder, "num_extra_tokens", 0)
    grid = None
    if config.modality == "image":
        side = config.input.size[0] // config.encoder.patch_size
        grid = (side, side)
    counts = Counts(
        shape,
        len(masks.masked),
        masks.masked.shape[1],
        masks.visible.shape[1],
        round(float(masks.weight.sum(1).mean())),
        prefix,
        grid,
    )
    step = step_flops({config.modality: config}, [{config.modality: counts}])
    total = sum(step.values()) / rows * per_step * config.train.steps
    told = re.match(
        r"(\d\.\de\d\d) floating .*: (\d+) hours on 8 ", read_recipe(name).facts["Time"]
    )
    assert told is not None
    assert told[1] == f"{total:.1e}".replace("+", "")
    assert told[2] == f"{total / 8 / 300e12 / 3600:.0f}"
