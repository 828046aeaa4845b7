"""The pictures of a run: what they leave behind, and that training does not notice them."""

import json
import random
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from launching import checkpoint
from matplotlib.figure import Figure
from modality_cases import MODALITIES, Sample
from PIL import Image
from small_runs import JOINT, SmallRuns, same, saved
from tiny import samples, write_shard, write_task

from selfdistill.data.loader import Source
from selfdistill.data.shards import open_shards
from selfdistill.modalities.backbone import build_backbone
from selfdistill.modalities.base import load_modality
from selfdistill.modalities.image.picture import ImagePicture
from selfdistill.modalities.picture import Shown
from selfdistill.pictures import drawing, scene
from selfdistill.pictures.drawing import MOST_BYTES, as_png, file_name
from selfdistill.pictures.examples import Grid, training_examples
from selfdistill.pictures.run import Pictures
from selfdistill.run_folder.layout import DRAWN

NAMES = {
    "audio": {"principal_components_over_time", "similarity_of_moments"},
    "image": {"principal_components_of_patches", "similarity_to_one_patch"},
    "text": {"nearest_tokens", "nearest_passages"},
}
MASKS = "training_samples_with_masks"
ON = "eval.pictures=true"


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {DRAWN}


def expected(modality: str, *maps: str) -> set[str]:
    samples = {MASKS} if load_modality(modality).picture else set()
    return {f"{name}.png" for name in {*NAMES.get(modality, ()), *samples, *maps}}


def task(folder: Path, modality: str, name: str = "kind") -> str:
    return "eval.tasks=" + json.dumps({name: write_task(folder, modality)})


@pytest.mark.parametrize("modality", MODALITIES)
def test_weights_are_the_same_with_and_without(
    runs: SmallRuns, modality: str, tmp_path: Path
) -> None:
    words = [task(tmp_path, modality), "eval.every=1"]
    assert runs.pretrain(modality, tmp_path / "with", *words, ON) == 0
    assert runs.pretrain(modality, tmp_path / "without", *words) == 0
    for step in (2, 3):
        assert same(saved(tmp_path / "with", step), saved(tmp_path / "without", step))
    results = [json.loads((tmp_path / n / "eval.json").read_text()) for n in ("with", "without")]
    assert results[0] == results[1]
    assert files(tmp_path / "with" / "pictures") == expected(modality, "map_of_samples_by_kind")
    assert not (tmp_path / "without" / "pictures").exists()


def test_without_labelled_sets_the_training_data_are_drawn(runs: SmallRuns, tmp_path: Path) -> None:
    assert runs.pretrain("image", tmp_path / "with", ON) == 0
    assert runs.pretrain("image", tmp_path / "without") == 0
    assert same(saved(tmp_path / "with", 3), saved(tmp_path / "without", 3))
    found = tmp_path / "with" / "pictures"
    assert files(found) == expected("image", "map_of_samples")
    for path in found.glob("*.png"):
        assert path.stat().st_size <= MOST_BYTES
        with Image.open(path) as picture:
            assert picture.width == 1050


def test_each_modality_of_several_has_its_folder(runs: SmallRuns, tmp_path: Path) -> None:
    assert runs.pretrain(JOINT, tmp_path, ON) == 0
    for modality in MODALITIES:
        assert files(tmp_path / "pictures" / modality) == expected(modality, "map_of_samples")


def test_tensorboard_has_every_evaluation(runs: SmallRuns, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    words = [task(tmp_path, "image"), "eval.every=2", ON, "log.tensorboard=true"]
    assert runs.pretrain("image", tmp_path / "run", *words) == 0
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard"), {"images": 0})
    board.Reload()
    tags = {f"pictures/{name}" for name in NAMES["image"] | {MASKS, "map_of_samples_by_kind"}}
    assert set(board.Tags()["images"]) == tags
    assert [image.step for image in board.Images("pictures/map_of_samples_by_kind")] == [2, 3]


def test_a_failure_is_one_warning(
    runs: SmallRuns,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(*_: Any) -> Figure:
        raise RuntimeError("no ink")

    monkeypatch.setattr(drawing, "draw_map", broken)
    words = [task(tmp_path, "image"), "eval.every=1", ON]
    assert runs.pretrain("image", tmp_path / "run", *words) == 0
    assert [r.message for r in caplog.records if "no ink" in r.message] == [
        "pictures cannot be drawn (RuntimeError('no ink')); the run goes on without them"
    ]
    assert json.loads((tmp_path / "run" / "eval.json").read_text())["image"]["step"] == 3


@pytest.mark.parametrize("labelled", [True, False])
def test_a_signal_breaks_it_off(
    labelled: bool, runs: SmallRuns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    words = [task(tmp_path, "image")] * labelled + [ON]
    drawn = drawing.draw_map

    def interrupted(*given: Any) -> Figure:
        signal.raise_signal(signal.SIGTERM)
        return drawn(*given)

    with monkeypatch.context() as patch:
        patch.setattr(drawing, "draw_map", interrupted)
        # what is not evaluated is not finished; without labels only pictures are missing
        assert runs.pretrain("image", run, *words) == (75 if labelled else 0)
    assert files(run / "pictures") == expected("image")
    assert checkpoint(run, 3).is_dir()
    assert runs.pretrain("image", run, *words) == 0
    assert (run / "eval.json").exists() == labelled
    found = expected("image", "map_of_samples" + "_by_kind" * labelled)
    assert files(run / "pictures") == found
    times = {path: path.stat().st_mtime_ns for path in (run / "pictures").iterdir()}
    assert runs.pretrain("image", run, *words) == 0, "and draws nothing once more"
    assert {path: path.stat().st_mtime_ns for path in (run / "pictures").iterdir()} == times


def test_chance_modes_and_weights_stay(
    runs: SmallRuns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = drawing.draw_map
    monkeypatch.setattr(drawing, "draw_map", lambda *given: (torch.rand(1), drawn(*given))[1])
    config = runs.config("image", "data.workers=0")
    pipeline = load_modality("image").build_pipeline(config)
    shards = open_shards(runs.shards("image"), pipeline.extensions, None, "data.train")
    untrained, trained = build_backbone(config), build_backbone(config).train()
    trained.trunk.blocks[0].eval()
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    modes = [part.training for part in trained.modules()]
    torch.manual_seed(5)
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    pictures = Pictures(config, Source(shards, pipeline, 8), None, tmp_path / "new", None, "")
    assert pictures.needs_untrained
    pictures(1, untrained, trained)
    assert files(tmp_path / "new") == expected("image", "map_of_samples")
    assert not pictures.needs_untrained
    pictures(2, None, trained)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]  # noqa: NPY002
    assert random.getstate() == states[2]
    assert [part.training for part in trained.modules()] == modes
    assert same(trained.state_dict(), before)
    assert all(parameter.grad is None for parameter in trained.parameters())


def test_tokens_are_bounded(runs: SmallRuns, monkeypatch: pytest.MonkeyPatch) -> None:
    config = runs.config("image")
    pipeline = load_modality("image").build_pipeline(config)
    shards = open_shards(runs.shards("image"), pipeline.extensions, None, "data.train")
    monkeypatch.setattr(scene, "TOKENS", 17 * 16)
    backbone = build_backbone(config)
    numbers, tokens = scene.tokens_of(backbone, shards, np.arange(40)[::-1], pipeline, 1)
    assert numbers.tolist() == list(range(39, 7, -1))
    assert len(tokens) == 32
    assert {x.shape for x in tokens} == {(16, 16)}
    keys = [key for key, _, _ in scene.examples_of(shards, numbers, pipeline)]
    assert keys == [shards.keys[i] for i in numbers]


def test_a_file_is_small() -> None:
    figure = Figure(figsize=(7, 7))
    figure.figimage(np.random.default_rng(0).random((1050, 1050, 3)), resize=False)
    assert len(as_png(figure)) <= MOST_BYTES


def test_a_name_stays_in_its_folder() -> None:
    assert file_name("map_of_samples_by_letter") == "map_of_samples_by_letter"
    for name in ("../../x", "/etc/passwd", "..", "a/b", ".hidden"):
        made = file_name(name)
        assert "/" not in made
        assert not made.startswith(".")


def test_tokens_and_neighbours_are_of_the_task_with_most_classes(
    runs: SmallRuns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one, which is the headline, may have two; of equal ones it is the first."""
    origins: list[str] = []
    features = load_modality("text").features
    assert features is not None

    def noted(*given: Any) -> Any:
        picture = features(*given)
        draw = picture.draw
        picture.draw = lambda looks, origin: (origins.append(origin[0]), draw(looks, origin))[1]
        return picture

    two = write_task(tmp_path / "two", "text")
    four = {
        split: [str(write_shard(tmp_path / "four" / f"{split}.tar", labelled(count)))]
        for split, count in (("train", 24), ("test", 16))
    }
    monkeypatch.setitem(vars(load_modality("text")), "features", noted)
    words = ["eval.tasks=" + json.dumps({"two": two, "four": four, "again": four}), ON]
    assert runs.pretrain("text", tmp_path / "run", *words) == 0
    assert origins == ["text, test samples of four, after 3 steps."]


def labelled(count: int) -> list[Sample]:
    return [
        sample | {"cls": str(number % 4).encode()}
        for number, sample in enumerate(samples("text", count, count))
    ]


def test_training_samples_have_new_masks_each_time(runs: SmallRuns) -> None:
    config = runs.config("image")
    pipeline = load_modality("image").build_pipeline(config)
    shards = open_shards(runs.shards("image"), pipeline.extensions, None, "data.train")
    picture = ImagePicture(config)
    numbers = [5, 6, 40]
    first, again, later = (
        list(training_examples(shards, numbers, picture, seed)) for seed in (1, 1, 2)
    )
    assert [shown.key for shown in first] == [shards.keys[i] for i in numbers]
    for one, same_one, other in zip(first, again, later, strict=True):
        assert one.masked is not None
        assert one.masked.sum() == 8
        np.testing.assert_array_equal(one.masked, same_one.masked)
        np.testing.assert_array_equal(one.value, same_one.value)
        assert (one.masked != other.masked).any()
        assert (one.value != other.value).any()


def test_rows_that_do_not_fit_are_left_out_but_for_the_first(runs: SmallRuns) -> None:
    picture = ImagePicture(runs.config("image"))
    shown = [Shown(str(i), None, np.zeros((3, 16, 16), np.float32), None) for i in range(9)]
    shown = [replace(one, masked=np.zeros(16, dtype=bool)) for one in shown]
    rows = [Grid(picture, shown, 7.0, most).height for most in (9.0, 5.0, 0.1)]
    assert rows == pytest.approx([3 * rows[2], 2 * rows[2], rows[2]])
    # a title that is too long loses its middle
    grid = Grid(picture, [replace(shown[0], key="a" * 200 + "b")], 7.0)
    figure = Figure(figsize=(7, 7))
    grid.draw(figure, 0, 7)
    (text,) = figure.texts
    assert text.get_text().startswith("aaa")
    assert "..." in text.get_text()
    assert text.get_text().endswith("ab")
