"""Runs over several modalities, from the config to what is exported."""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import Ended, checkpoint, rows
from modality_cases import MODALITIES
from safetensors.torch import load_file
from small_runs import saved
from tiny import JOINT, STEPS, write_task
from worlds import Job, train

from selfdistill import export
from selfdistill.cli import main
from selfdistill.config_files.load import load_config
from selfdistill.data.loader import _Plan
from selfdistill.engine.interval import OF_A_MODALITY
from selfdistill.engine.saving import Saver
from selfdistill.errors import SelfdistillError
from selfdistill.evaluation import Evaluation
from selfdistill.hub.writer import write_folder
from selfdistill.modalities.base import load_modality
from selfdistill.objective.data2vec import Data2Vec
from selfdistill.objective.state import of_student
from selfdistill.probes.evaluate import Evaluator

Config = Callable[..., str]
Pretrain = Callable[..., Ended]
OWN = {*OF_A_MODALITY, "teacher_norm_01", "teacher_norm_02"}
THREE_STEPS = ["train.steps=3", "optim.warmup_steps=0"]


def task_words(folder: Path, *modalities: str) -> list[str]:
    """Overrides that give each a labelled set."""
    return [
        f"modalities.{name}.eval.tasks.{name}ness={json.dumps(write_task(folder / name, name))}"
        for name in modalities
    ]


def test_everything_is_trained(reference: Callable[[str], Path]) -> None:
    """Each encoder, each decoder, the shared blocks and their teacher."""
    run = reference(JOINT)
    torch.manual_seed(3)
    first = Data2Vec(load_config(run / "config.yaml", [], load_modality)).state_dict()
    last = saved(run, STEPS)
    assert last.keys() == first.keys()
    for name in (n for n in last if last[n].is_floating_point()):
        assert not torch.equal(last[name], first[name]), name
    for modality in MODALITIES:
        for part in ("student.encoders", "teacher.encoders", "predictors"):
            assert any(name.startswith(f"{part}.{modality}.") for name in last)


def test_the_lines_of_the_log(reference: Callable[[str], Path]) -> None:
    logged = rows(reference(JOINT))
    assert [row["step"] for row in logged] == [*range(1, STEPS + 1)]
    for row in logged:
        own = {key for key in row if "/" in key}
        assert own == {f"{modality}/{name}" for modality in MODALITIES for name in OWN}
        assert not (OWN - {"loss"}) & row.keys()
        assert row["loss"] == pytest.approx(sum(row[f"{m}/loss"] for m in MODALITIES))
    seconds = [row["train_seconds"] for row in logged]
    assert seconds == sorted(seconds)
    assert seconds[0] > 0


def test_the_weight_of_a_loss(config: Config, here: Pretrain, tmp_path: Path) -> None:
    words = ["train.steps=1", "optim.warmup_steps=0"]
    assert here(config(JOINT, "even"), *words).code == 0
    weighted = "modalities.text.objective.loss_weight=0.5"
    assert here(config(JOINT, "odd"), *words, weighted).code == 0
    [even], [odd] = rows(tmp_path / "even"), rows(tmp_path / "odd")
    for modality in MODALITIES:
        assert odd[f"{modality}/loss"] == even[f"{modality}/loss"]
    assert odd["loss"] == pytest.approx(even["loss"] - 0.5 * even["text/loss"])
    assert odd["grad_norm"] != even["grad_norm"]


def test_what_is_said_at_the_start(config: Config, here: Pretrain, tmp_path: Path) -> None:
    words = ["modalities.text.data.sampling_weight=2", "train.batch_size=8"]
    told = here(config(JOINT), *words, "train.steps=1", "optim.warmup_steps=0").stderr
    assert re.search(r"pretraining an encoder of .* for audio, image, text on 144 samples", told)
    for modality, size in (("audio", 2), ("image", 2), ("text", 4)):
        assert f"\n{modality}: 48 samples, {size} in each step; " in told
    assert "load the image encoder: Data2VecVisionModel cannot hold model.norm_order=post" in told
    assert "the audio encoder" not in told
    last = told.splitlines()[-1]
    assert re.search(r"step 1/1, .* loss \d.*, audio: loss \d\S+ target std \d", last)


def test_the_saved_config_is_the_whole_config(reference: Callable[[str], Path]) -> None:
    run = reference(JOINT)
    state = json.loads((checkpoint(run, STEPS) / "state.json").read_text())
    saved = load_config(run / "config.yaml", [], load_modality)
    assert list(saved.parts()) == list(MODALITIES)
    assert saved.modalities["text"].input.tokenizer == str(run / "tokenizer.json")
    copied = run.parent / "copied.yaml"
    copied.write_text(json.dumps(state["config"]))
    assert load_config(copied, [], load_modality) == saved


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train.batch_size=8"], "train.batch_size: 8 samples cannot be split evenly in the"),
        (["train.batch_size=8"], "audio 1, image 1, text 1 of data.sampling_weight and over"),
        (["train.batch_size=12", "train.accumulate=6"], "; use a multiple of 18"),
        (["modalities.text.data.train=[/no.tar]"], "modalities.text: data.train: no file"),
        (
            ["modalities.text.eval.tasks.x.train=[/no.tar]"],
            "modalities.text: eval.tasks.x.train: no file",
        ),
        (["modalities.text.input.tokenizer=/no"], "modalities.text: input.tokenizer: cannot read"),
        (["modalities.text.mask.mask_prob=1"], "modalities.text: mask.mask_prob: 1.0 would"),
        (["train.max_left_out=0"], "train.max_left_out: 0 must be 1 or more"),
    ],
)
def test_mistakes(
    words: list[str], message: str, config: Config, here: Pretrain, tmp_path: Path
) -> None:
    ended = here(config(JOINT), *words)
    assert ended.code == 2
    assert message in ended.stderr.splitlines()[-1]
    assert rows(tmp_path / "run") == []


def test_a_guard_names_its_modality(config: Config, here: Pretrain, tmp_path: Path) -> None:
    """And has that modality's limits."""
    words = ["guard.after_steps=4", "guard.patience=2", "modalities.image.guard.min_target_std=50"]
    ended = here(config(JOINT), *words)
    assert ended.code == 3
    last = ended.stderr.splitlines()[-1]
    assert last.startswith(
        "selfdistill: image: collapsed at step 6: the deviation of the targets fell"
    )
    state = json.loads((checkpoint(tmp_path / "run", 6) / "state.json").read_text())
    alarms = {name: guard["alarms"] for name, guard in state["guard"].items()}
    assert alarms == {"audio": 0, "image": 2, "text": 0}


def test_evaluation(
    config: Config, pretrain: Pretrain, reference: Callable[[str], Path], tmp_path: Path
) -> None:
    """Every modality that has a task has a table; what is trained does not depend on it."""
    words = task_words(tmp_path, "audio", "text")
    ended = pretrain(config(JOINT), *words, "eval.every=25")
    assert ended.code == 0, ended.stderr
    run = tmp_path / "run"
    found = saved(run, STEPS)
    assert all(torch.equal(found[n], t) for n, t in saved(reference(JOINT), STEPS).items())
    result = json.loads((run / "eval.json").read_text())
    assert list(result) == ["audio", "text"]
    evaluated = [row for row in rows(run) if "audio/eval/audioness/linear" in row]
    assert [row["step"] for row in evaluated] == [25, 50, STEPS]
    for modality in result:
        found = result[modality]
        assert found["step"] == STEPS
        assert found["linear"]["untrained"] is not None
        for probe in ("linear", "few_shot", "knn"):
            key = f"{modality}/eval/{modality}ness/{probe}"
            assert evaluated[-1][key] == found[probe]["trained"]
        assert f"{modality}, {modality}ness: 24 labelled samples for training" in ended.stdout
    trained = [row["train_seconds"] for row in rows(run) if row["step"] == STEPS]
    assert trained[0] == trained[1]


def test_the_untrained_encoders_are_those_of_the_first_step(
    config: Config, here: Pretrain, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where nothing is learned they are the trained ones."""
    given: dict[str, list[Any]] = {"compare": [], "evaluate": []}

    def note(name: str) -> None:
        real = getattr(Evaluator, name)

        def noted(self: Evaluator, encoder: Any, collect: Any) -> Any:
            given[name].append(encoder.state_dict())
            return real(self, encoder, collect)

        monkeypatch.setattr(Evaluator, name, noted)

    note("compare")
    note("evaluate")
    still = ["train.steps=1", "optim.warmup_steps=0", "optim.lr=1e-30"]
    assert here(config(JOINT), *still, *task_words(tmp_path, *MODALITIES)).code == 0
    assert len(given["compare"]) == 3
    for untrained, trained in zip(given["compare"], given["evaluate"], strict=True):
        assert untrained.keys() == trained.keys()
        for name, tensor in untrained.items():
            torch.testing.assert_close(tensor, trained[name], rtol=0, atol=1e-12)


def test_a_late_evaluation(config: Config, here: Pretrain, tmp_path: Path) -> None:
    """A run that was killed before its last evaluation makes up for all of it."""
    words = [config(JOINT), *THREE_STEPS, *task_words(tmp_path, "audio", "image")]
    first = here(*words)
    assert first.code == 0, first.stderr
    run = tmp_path / "run"
    lines = rows(run)
    result = json.loads((run / "eval.json").read_text())
    result["image"]["step"] = 2
    (run / "eval.json").write_text(json.dumps(result))
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines[:-1]))
    late = here(*words)
    assert late.stdout == first.stdout
    assert rows(run) == lines
    assert "evaluating" not in here(*words).stderr


def test_two_processes(config: Config, here: Pretrain, tmp_path: Path) -> None:
    words = ["model.dropout=0", "model.attention_dropout=0", "model.activation_dropout=0"]
    words += ["model.drop_path=0", "model.layer_drop=0", "decoder.mask_noise_std=0"]
    words += [
        "modalities.audio.encoder.input_dropout=0",
        "modalities.audio.mask.equal_counts=false",
    ]
    words += [*THREE_STEPS, "optim.eps=1e-3", "optim.lr=1e-2"]
    assert here(config(JOINT, "one"), *words).code == 0
    two = Job([config(JOINT, "two"), *words, *task_words(tmp_path, "image")])
    train(2, [two], tmp_path / "output")
    one = saved(tmp_path / "one", 3)
    for name, value in saved(tmp_path / "two", 3).items():
        torch.testing.assert_close(value, one[name], rtol=1e-4, atol=2e-6, msg=name)
    # these read the smallest of the singular values, too
    summed = OWN - {"target_rank", "prediction_rank", "target_slope"}
    summed -= {"sample_std"}  # within each micro-batch
    for row, wanted in zip(rows(tmp_path / "two"), rows(tmp_path / "one"), strict=False):
        for key in ("loss", "grad_norm", *(f"{m}/{name}" for m in MODALITIES for name in summed)):
            assert row[key] == pytest.approx(wanted[key], rel=1e-4), key
    said = [(tmp_path / "output" / str(rank)).read_text() for rank in (0, 1)]
    assert [text.count("labelled samples for training") for text in said] == [1, 0]


def test_resuming_with_other_values(
    config: Config, here: Pretrain, caplog: pytest.LogCaptureFixture
) -> None:
    assert here(config(JOINT), *THREE_STEPS).code == 0
    refused = here(config("audio"), "optim.warmup_steps=0", "model.layer_drop=0.2")
    assert refused.code == 2
    assert "other values: modalities: audio, image, text -> audio. Change" in refused.stderr
    words = ["modalities.text.data.sampling_weight=4", "train.batch_size=12"]
    refused = here(config(JOINT), *words, "optim.warmup_steps=0", "train.steps=4")
    assert refused.code == 2
    assert "modalities.text.data.sampling_weight: 1.0 -> 4.0. Change" in refused.stderr
    words = ["modalities.text.mask.mask_prob=0.3", "train.steps=4", "optim.warmup_steps=0"]
    assert here(config(JOINT), *words).code == 0
    assert "changed value: modalities.text.mask.mask_prob: 0.35 -> 0.3" in caplog.text


def test_what_the_time_of_training_is(
    config: Config, here: Pretrain, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Waiting for data is in it; evaluations and checkpoints are not."""
    clock, late = time.monotonic, [0]
    monkeypatch.setattr(time, "monotonic", lambda: clock() + late[0])

    def delayed(owner: Any, name: str, seconds: int) -> None:
        real = getattr(owner, name)

        def slow(*given: Any) -> Any:
            late[0] += seconds
            return real(*given)

        monkeypatch.setattr(owner, name, slow)

    delayed(_Plan, "step", 1000)
    delayed(Evaluation, "__call__", 100_000)
    delayed(Saver, "save", 100_000)
    assert here(config("image"), *THREE_STEPS, "eval.every=1", "checkpoint.every=1").code == 0
    for row in rows(tmp_path / "run"):
        assert row["train_seconds"] == pytest.approx(1000 * row["step"], abs=500)


def test_the_time_of_training_goes_on(config: Config, here: Pretrain, tmp_path: Path) -> None:
    """A resumed run adds to it; what was trained and lost again does not count."""
    run = tmp_path / "run"
    assert here(config("image"), "train.steps=10", "checkpoint.every=7").code == 0
    first = {row["step"]: row["train_seconds"] for row in rows(run)}
    for path in checkpoint(run, 10).iterdir():
        path.unlink()
    state = json.loads((checkpoint(run, 7) / "state.json").read_text())
    assert state["train_seconds"] == first[7]
    assert here(config("image"), "train.steps=10", "checkpoint.every=7").code == 0
    again = {row["step"]: row["train_seconds"] for row in rows(run)}
    assert [again[step] for step in range(1, 8)] == [first[step] for step in range(1, 8)]
    assert first[7] < again[8] < again[10]


def test_export(
    reference: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, out = reference(JOINT), tmp_path / "out"

    def full(folder: Path, *parts: Any) -> None:
        if folder.name == "text":
            raise SelfdistillError("no space left on device")
        write_folder(folder, *parts)

    with monkeypatch.context() as patch:
        patch.setattr(export, "write_folder", full)
        assert main(["export", str(run), "--out", str(out)]) == 1
    assert not out.exists(), "what was written before is in the way of the next try"
    capsys.readouterr()
    assert main(["export", str(run), "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"written to {out / 'audio'}"
    assert lines[1].startswith("image is left out: Data2VecVisionModel cannot hold model.norm_ord")
    assert lines[2] == f"written to {out / 'text'}"
    assert sorted(path.name for path in out.iterdir()) == ["audio", "text"]
    card = (out / "text" / "README.md").read_text()
    loss = rows(run)[-1]["text/loss"]
    assert f"after {STEPS} of {STEPS} steps of 12 samples, loss {loss:.4f}. Its layers" in card
    assert "learned from audio and image at the same time" in card
    assert "Pretrained by [data2vec 2.0](https://arxiv.org/abs/2212.07525)" in card
    assert "\n    strategy: visible\n    decoder:\n      width: 8\n" in card
    given = of_student(saved(run, STEPS), "text")["encoder.local.weight"]
    written = load_file(out / "text" / "model.safetensors")
    assert torch.equal(written["embeddings.word_embeddings.weight"], given)


def test_export_of_one(
    reference: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(reference(JOINT))
    capsys.readouterr()
    words = ["--out", str(tmp_path / "out"), "--modality"]
    assert main(["export", run, *words, "image"]) == 2
    assert "cannot be loaded by transformers: Data2VecVisionModel" in capsys.readouterr().err
    assert main(["export", run, *words, "smell"]) == 2
    assert "has no smell encoder; it has audio, image, text" in capsys.readouterr().err
    assert main(["export", run, *words, "audio"]) == 0
    assert capsys.readouterr().out == f"written to {tmp_path / 'out'}\n"
    assert (tmp_path / "out" / "config.json").is_file()


def test_export_where_nothing_can_be(
    config: Config, here: Pretrain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert here(config(JOINT), *THREE_STEPS, "model.key_bias=false").code == 0
    assert main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    for name in ("audio", "image", "text"):
        assert f"{name}: Data2Vec" in error
    assert not (tmp_path / "out").exists()


def test_a_repository_holds_one_encoder(
    reference: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("selfdistill.export.check_push", lambda name: None)
    words = ["--out", str(tmp_path / "out"), "--push", "me/mine"]
    assert main(["export", str(reference(JOINT)), *words]) == 2
    assert "--push: me/mine can hold one encoder, and" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    pushed: list[Any] = []
    monkeypatch.setattr(
        "selfdistill.export.push", lambda *given: (pushed.append(given), "there")[1]
    )
    assert main(["export", str(reference(JOINT)), *words, "--modality", "text"]) == 0
    assert pushed == [(tmp_path / "out", "me/mine")]
    assert capsys.readouterr().out == f"written to {tmp_path / 'out'}, uploaded to there\n"


def test_embed(
    reference: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "lines.txt").write_text("bala kodi\nmune sepa tufo\n")
    words = ["embed", str(reference(JOINT)), str(tmp_path / "lines.txt"), "--out"]
    assert main([*words, str(tmp_path / "a.safetensors")]) == 2
    error = capsys.readouterr().err
    assert re.search(r"--modality: .* is of a run over audio, image, text; name one", error)
    assert main([*words, str(tmp_path / "b.safetensors"), "--modality", "text"]) == 0
    assert load_file(tmp_path / "b.safetensors")["layer_2"].shape == (2, 16)
