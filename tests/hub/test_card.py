"""The model card says what the weights are, and names no place on this machine."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import yaml
from modality_cases import EXPORTABLE
from safetensors.torch import load_file
from small_runs import STEPS, SmallRuns, checkpoint, same, saved

from selfdistill.export import export
from selfdistill.pretrained import load_pretrained


@pytest.fixture
def copied(runs: SmallRuns, tmp_path: Path) -> Callable[[str], Path]:
    """Modality to a copy of its run."""
    return lambda modality: runs.copy(modality, tmp_path / "copied")


def card_of(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


def front_matter(card: str) -> dict[str, Any]:
    start, front, _ = card.split("---\n", 2)
    assert start == ""
    return yaml.safe_load(front)


def section(card: str, title: str) -> str:
    """The indented lines of a section."""
    text = card.split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]
    return dedent("\n".join(line for line in text.splitlines() if line.startswith("    ")))


@pytest.mark.parametrize("modality", EXPORTABLE)
def test_the_front_matter(modality: str, runs: SmallRuns) -> None:
    card = card_of(runs.exported(modality))
    front = front_matter(card)
    image = modality == "image"
    assert front["library_name"] == "transformers"
    assert front["pipeline_tag"] == ("image-feature-extraction" if image else "feature-extraction")
    model_type = f"data2vec-{'vision' if image else modality}"
    assert front["tags"] == ["data2vec", model_type, modality, "self-supervised"]
    assert (front["license"], front["license_name"]) == ("other", "unspecified")
    assert front["datasets"] == []
    assert "Set `license` and `datasets` above to what the data allow and are." in card


@pytest.mark.parametrize("modality", EXPORTABLE)
def test_the_lines_that_load_it_are_python(modality: str, runs: SmallRuns) -> None:
    lines = section(card_of(runs.exported(modality)), "Use")
    compile(lines, "README.md", "exec")
    assert lines.splitlines()[0].startswith('path = "."')
    assert lines.count(".from_pretrained(path)") == 2


@pytest.mark.parametrize("modality", EXPORTABLE)
def test_the_recipe_repeats_the_training(modality: str, runs: SmallRuns, tmp_path: Path) -> None:
    """With its own data and folder it is the config of a run with the same weights."""
    recipe = yaml.safe_load(section(card_of(runs.exported(modality)), "Recipe"))
    assert list(recipe) == [
        *("modality", "seed", "encoder", "mask", "input", "model", "objective", "teacher"),
        *("optim", "train"),
    ]
    if modality == "text":
        assert recipe["input"]["tokenizer"] == "tokenizer.json"
        recipe["input"]["tokenizer"] = str(runs.exported("text") / "tokenizer.json")
    given = yaml.safe_load(runs.config_file(modality, tmp_path / "run").read_text())
    kept = {key: given[key] for key in ("run_dir", "data", "log")}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**recipe, **kept}))
    assert runs.pretrain_from(tmp_path / "recipe.yaml") == 0
    assert same(saved(tmp_path / "run", STEPS), saved(runs.run(modality), STEPS))


def test_the_recipe_has_what_a_step_holds_and_the_faults_of_the_originals(
    runs: SmallRuns, tmp_path: Path
) -> None:
    words = ["train.steps=1", "data.batch_length=1", "compat.padding_in_positions=true"]
    assert runs.pretrain("audio", tmp_path / "run", *words) == 0
    export(str(tmp_path / "run"), tmp_path / "out")
    recipe = yaml.safe_load(section(card_of(tmp_path / "out"), "Recipe"))
    assert recipe["data"] == {"batch_length": 1.0}
    assert recipe["compat"]["padding_in_positions"] is True


def test_the_card_says_what_the_weights_are(runs: SmallRuns, tmp_path: Path) -> None:
    export(str(checkpoint(runs.run("audio"), 2)), tmp_path / "out", "teacher")
    card = card_of(tmp_path / "out")
    rows = [
        json.loads(line) for line in (runs.run("audio") / "metrics.jsonl").read_text().splitlines()
    ]
    losses = {row["step"]: f"loss {row['loss']:.4f}" for row in rows}
    assert f"the weights of the teacher after 2 of 3 steps of 8 samples, {losses[2]}." in card
    assert losses[3] not in card
    assert "2 layers, 16 wide" in card
    numbers = sum(
        tensor.numel() for tensor in load_file(tmp_path / "out" / "model.safetensors").values()
    )
    assert f"{numbers / 1e6:.2f} M parameters" in card
    assert "Data: `0.tar`, `1.tar`." in card
    assert "arxiv.org/abs/2202.03555" in card


def test_a_run_that_still_writes_its_metrics(copied: Callable[[str], Path], tmp_path: Path) -> None:
    run = copied("image")
    with open(run / "metrics.jsonl", "a") as metrics:
        metrics.write('{"step": 3, "lo')
    export(str(run), tmp_path / "half")
    assert re.search(r"samples, loss \d", card_of(tmp_path / "half"))
    (run / "metrics.jsonl").write_text('{"step": 3, "loss": null}\n')
    export(str(run), tmp_path / "infinite")
    (run / "metrics.jsonl").unlink()
    export(str(run), tmp_path / "without")
    for name in ("infinite", "without"):
        assert "after 3 of 3 steps of 8 samples." in card_of(tmp_path / name)


def evaluation(step: int) -> str:
    scores = {"untrained": 0.25, "raw": 0.5, "trained": 0.875}
    table = {**scores, "layer": 1, "standard_error": dict.fromkeys(scores, 0.01)}
    task = {"train_samples": 24, "test_samples": 16, "classes": 2}
    task |= dict.fromkeys(("linear", "few_shot", "knn"), table)
    found = {"step": step, "raw_input": "pixels", "tasks": {"pitch": task}}
    return json.dumps({"image": found})


def test_the_probes_of_that_step_alone(copied: Callable[[str], Path], tmp_path: Path) -> None:
    run = copied("image")
    (run / "eval.json").write_text(evaluation(STEPS))
    export(str(run), tmp_path / "newest")
    export(str(checkpoint(run, 2)), tmp_path / "earlier")
    table = section(card_of(tmp_path / "newest"), "What frozen features tell")
    assert "image, pitch: 24 labelled samples for training, 16 for the test" in table
    assert "87.5 +- 1.0 (layer 1)" in table
    assert "What frozen features tell" not in card_of(tmp_path / "earlier")
    assert "87.5" not in card_of(tmp_path / "earlier")


def test_the_probes_of_the_student_are_not_the_teachers(
    copied: Callable[[str], Path], tmp_path: Path
) -> None:
    run = copied("image")
    (run / "eval.json").write_text(evaluation(STEPS))
    export(str(run), tmp_path / "out", "teacher")
    assert "What frozen features tell" not in card_of(tmp_path / "out")


@pytest.mark.parametrize("modality", EXPORTABLE)
def test_no_place_on_this_machine_is_told(
    modality: str, runs: SmallRuns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a run that names every place it can, not one is in any of the files."""
    monkeypatch.setenv("HOME", str(tmp_path / "home-of-user"))
    run, source = tmp_path / "secret-run", runs.exported(modality)
    words = [f"init_from={source}", "train.steps=1"]
    if modality == "text":
        words.append(f"input.tokenizer={source / 'tokenizer.json'}")
    assert runs.pretrain(modality, run, *words) == 0
    export(str(run), tmp_path / "out")
    assert "Training began from other weights" in card_of(tmp_path / "out")
    assert "Training began" not in card_of(source)
    places = [run, tmp_path, Path.home(), runs.folder, source, Path.cwd(), Path(__file__).parent]
    for path in (tmp_path / "out").iterdir():
        for place in (*map(str, places), "secret-run", "home-of-user", "init_from"):
            assert place.encode() not in path.read_bytes(), (path.name, place)


def test_a_card_that_the_user_wrote_stays(runs: SmallRuns, tmp_path: Path) -> None:
    source = Path(shutil.copytree(runs.exported("image"), tmp_path / "source"))
    (source / "README.md").write_text("# Mine, \u00fc\n", encoding="utf-8")
    export(str(source), tmp_path / "out")
    assert card_of(tmp_path / "out") == "# Mine, \u00fc\n"
    (source / "README.md").unlink()
    export(str(source), tmp_path / "bare")
    assert load_pretrained(str(tmp_path / "bare")).modality.name == "image"
