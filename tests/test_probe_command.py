"""``selfdistill probe`` on small runs."""

import csv
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from modality_cases import MODALITIES, Sample
from modality_cases.audio import sample as audio
from small_runs import JOINT, SmallRuns, checkpoint
from tiny import samples, write_shard
from torch import Tensor

from selfdistill.cli import main
from selfdistill.modalities.backbone import Backbone
from selfdistill.probes import attentive, ctc

TRAIN, TEST = 40, 30
DEPTH = 2


@dataclass(frozen=True)
class Called:
    code: int
    out: str
    err: str
    json: dict[str, Any]
    csv: list[dict[str, str]]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What these two learn is no concern of the command."""
    for module in (attentive, ctc):
        monkeypatch.setattr(module, "MAX_PASSES", 2)


@pytest.fixture
def call(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Called]:
    """Arguments of the command to what it says and writes."""

    def run(*words: str | Path, few_shot: int = 3) -> Called:
        files = tmp_path / "found.json", tmp_path / "found.csv"
        for file in files:
            file.unlink(missing_ok=True)
        capsys.readouterr()
        options = ["--cache", tmp_path / "cache", "--few-shot", few_shot]
        options += ["--json", files[0], "--csv", files[1]]
        code = main(["probe", *map(str, (*words, *options))])
        printed = capsys.readouterr()
        found = json.loads(files[0].read_text()) if files[0].exists() else {}
        rows = list(csv.DictReader(files[1].open())) if files[1].exists() else []
        return Called(code, printed.out, printed.err, found, rows)

    return run


@pytest.fixture
def labelled(tmp_path: Path) -> Callable[..., list[str]]:
    """Modality to ``--train`` and ``--test`` of labelled shards."""

    def write(
        modality: str, train: Sequence[Sample] = (), test: Sequence[Sample] = ()
    ) -> list[str]:
        first = train or samples(modality, TRAIN, 1, labelled=True)
        second = test or samples(modality, TEST, 2, labelled=True)
        paths = [
            write_shard(tmp_path / f"{name}.tar", part)
            for name, part in (("train", first), ("test", second))
        ]
        return ["--train", str(paths[0]), "--test", str(paths[1])]

    return write


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry per forward pass."""
    calls: list[int] = []
    plain = Backbone.hidden_states

    def counted(self: Backbone, *given: Any) -> tuple[list[Tensor], Tensor | None]:
        calls.append(1)
        return plain(self, *given)

    monkeypatch.setattr(Backbone, "hidden_states", counted)
    return calls


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_run_beside_its_baselines(
    modality: str, runs: SmallRuns, call: Callable[..., Called], labelled: Callable[..., list[str]]
) -> None:
    found = call(runs.run(modality), *labelled(modality))
    assert found.code == 0
    task = found.json["tasks"]["data"]
    assert (task["classes"], task["train_samples"], task["test_samples"]) == (2, TRAIN, TEST)
    names = ["linear", "few_shot", "knn_1", "knn_5", "knn_20", "attentive"]
    assert list(task["probes"]) == names
    for name, by_source in task["probes"].items():
        sources = (
            ["untrained", "trained"] if name == "attentive" else ["raw", "untrained", "trained"]
        )
        assert list(by_source) == sources
        for score in by_source.values():
            assert 0 <= score["low"] <= score["accuracy"] <= score["high"] <= 1
            assert score["n"] == TEST
        trained = by_source["trained"]
        assert len(trained["layers"]) == DEPTH + 1
        assert trained["layers"][trained["layer"]]["accuracy"] == trained["accuracy"]
        for source, over in trained["over"].items():
            points = trained["accuracy"] - by_source[source]["accuracy"]
            assert over["difference"] == pytest.approx(points)
            assert over["low"] <= over["difference"] <= over["high"]
    assert task["probes"]["linear"]["raw"]["accuracy"] > 0.9
    assert f"{modality}, data: 40 samples for training, 30 for the test, 2 classes" in found.out
    assert "kNN, k=20" in found.out
    assert found.out.isascii()
    assert len(found.csv) == 5 * (1 + 2 * (DEPTH + 1)) + 2 * (DEPTH + 1)
    best = [row for row in found.csv if row["best"] == "1"]
    assert len(best) == 5 * 3 + 2
    for row in best:
        score = task["probes"][row["probe"]][row["source"]]
        assert float(row["accuracy"]) == score["accuracy"]
        assert int(row["layer"]) == score["layer"]


def test_the_second_call_computes_nothing(
    runs: SmallRuns,
    call: Callable[..., Called],
    labelled: Callable[..., list[str]],
    passes: list[int],
    tmp_path: Path,
) -> None:
    words = [runs.run("image"), *labelled("image"), "--probes", "knn,attentive"]
    first = call(*words)
    assert passes
    passes.clear()
    again = call(*words)
    assert not passes
    assert again.json == first.json
    assert again.err.count(f"samples found in {tmp_path / 'cache'}") == 10
    entry = next(path for path in (tmp_path / "cache").iterdir() if (path / "lengths.npy").exists())
    (entry / "layer_000.npy").write_bytes(b"damaged")
    assert call(*words).json == first.json
    assert passes
    passes.clear()
    call(*words, "--weights", "teacher")
    assert passes


def test_hub_folder_and_checkpoint(
    runs: SmallRuns, call: Callable[..., Called], labelled: Callable[..., list[str]]
) -> None:
    sets = [*labelled("audio"), "--probes", "linear,knn", "--neighbours", "3"]
    run = call(runs.run("audio"), *sets)
    saved = call(checkpoint(runs.run("audio"), 3), *sets)
    folder = call(runs.exported("audio"), *sets)
    for found in (run, saved, folder):
        assert found.code == 0, found.err
        assert list(found.json["tasks"]["data"]["probes"]) == ["linear", "knn_3"]
    assert saved.json["tasks"] == run.json["tasks"]
    by_probe = (found.json["tasks"]["data"]["probes"]["linear"] for found in (run, folder))
    one, other = (found["trained"]["accuracy"] for found in by_probe)
    assert one == pytest.approx(other, abs=0.1)


@pytest.mark.parametrize(("run", "modality"), [("image", "image"), (JOINT, "text")])
def test_the_untrained_encoder_is_that_of_the_run(
    run: str,
    modality: str,
    runs: SmallRuns,
    call: Callable[..., Called],
    labelled: Callable[..., list[str]],
) -> None:
    """Of a run over several modalities, too, whose encoders are drawn one after the other."""
    # labels that nothing tells, so that accuracies are those of these weights alone
    blind = [
        [sample | {"cls": b"%d" % (i % 2)} for i, sample in enumerate(samples(modality, n, n)[::2])]
        for n in (120, 160)
    ]
    task = labelled(modality, *blind)
    run_dir = runs.folder / f"{run}-with-tasks"
    key = f"modalities.{modality}.eval" if run == JOINT else "eval"
    words = [f"{key}.tasks.mine.train=[{task[1]}]", f"{key}.tasks.mine.test=[{task[3]}]"]
    assert runs.pretrain(run, run_dir, *words) == 0
    expected = json.loads((run_dir / "eval.json").read_text())[modality]["tasks"]["mine"]
    options = ["--probes", "linear,knn", "--neighbours", "20", "--modality", modality]
    found = call(run_dir, "--seed", "3", *options)
    assert found.code == 0
    probes = found.json["tasks"]["mine"]["probes"]
    for source in ("raw", "untrained", "trained"):
        assert probes["linear"][source]["accuracy"] == expected["linear"][source]
        assert probes["knn_20"][source]["accuracy"] == expected["knn"][source]


def test_of_a_run_over_several_one_is_named(
    runs: SmallRuns, call: Callable[..., Called], labelled: Callable[..., list[str]]
) -> None:
    words = [runs.run(JOINT), *labelled("image"), "--probes", "knn"]
    assert "--modality: " in call(*words).err
    found = call(*words, "--modality", "image")
    assert found.code == 0, found.err
    assert found.json["modality"] == "image"


def test_one_set_is_split(
    runs: SmallRuns, call: Callable[..., Called], labelled: Callable[..., list[str]]
) -> None:
    path = labelled("image")[1]
    first, again, other = (
        call(runs.run("image"), path, "--probes", "knn", "--no-baselines", "--seed", seed)
        for seed in "001"
    )
    assert first.code == 0
    task = first.json["tasks"]["data"]
    assert (task["train_samples"], task["test_samples"]) == (32, 8)
    assert list(task["probes"]["knn_5"]) == ["trained"]
    assert "raw" not in first.out.partition("percent")[0]
    assert again.json == first.json
    assert "found in" in again.err
    assert "found in" not in other.err


def test_bad_samples_are_left_out_and_told(
    runs: SmallRuns, call: Callable[..., Called], labelled: Callable[..., list[str]]
) -> None:
    parts = [samples("image", count, 1, labelled=True) for count in (TRAIN, TEST)]
    parts[0][3] |= {"png": b"no picture"}
    found = call(runs.run("image"), *labelled("image", *parts), "--probes", "knn")
    task = found.json["tasks"]["data"]
    assert (task["train_samples"], task["test_samples"]) == (TRAIN - 1, TEST)
    for source in ("raw", "untrained", "trained"):
        assert re.search(
            rf"{source}, .*: 1 of {TRAIN} samples are left out: 1 x undecodable image \(such as ",
            found.err,
        )


def test_labels_from_a_file(runs: SmallRuns, call: Callable[..., Called], tmp_path: Path) -> None:
    bare = write_shard(tmp_path / "bare.tar", samples("image", TRAIN))
    names = {f"s{i:04d}": ("light", "dark")[i % 2] for i in range(TRAIN)}
    for suffix, text in (
        ("json", json.dumps(names)),
        ("csv", "".join(f"{key},{name}\n" for key, name in names.items())),
        ("tsv", "key\tclass\n" + "".join(f"{key}\t{name}\n" for key, name in names.items())),
    ):
        file = tmp_path / f"labels.{suffix}"
        file.write_text(text)
        found = call(runs.run("image"), bare, "--labels", file, "--probes", "linear")
        assert found.code == 0, found.err
        assert found.json["tasks"]["data"]["class_names"] == ["dark", "light"]
        assert found.json["tasks"]["data"]["probes"]["linear"]["raw"]["accuracy"] > 0.9
    long = tmp_path / "quoted.csv"
    long.write_text('s0000,"dark\n' + "s0001,light\n" * 20_000)
    found = call(runs.run("image"), bare, "--labels", long)
    assert (found.code, "--labels: cannot read" in found.err) == (2, True)
    assert "field larger than field limit" in found.err
    file.write_text("\n".join(f"x{i}\t1" for i in range(5)) + "\ns0001\t0\n")
    found = call(runs.run("image"), bare, "--labels", file)
    assert found.code == 2
    assert "--labels: 5 of 6 keys of" in found.err
    assert "such as 'x0', 'x1', 'x2'; keys are" in found.err
    assert "'x3'" not in found.err


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("labels.csv", "s0000,0\ns0001,1\ns0002,\ns0003, \t\n"),
        ("labels.tsv", 's0000\t0\ns0001\t1\ns0002\t\ns0003\t"  "\n'),
        ("labels.json", '{"s0000": 0, "s0001": 1, "s0002": "", "s0003": " \\n"}'),
    ],
)
def test_a_class_of_blanks_is_no_label(
    name: str, text: str, runs: SmallRuns, call: Callable[..., Called], tmp_path: Path
) -> None:
    path = write_shard(tmp_path / "bare.tar", samples("image", 4))
    file = tmp_path / name
    file.write_text(text)
    found = call(runs.run("image"), path, "--labels", file)
    assert (found.code, "DATA: 2 of 4 samples have no label" in found.err) == (2, True), found.err


def test_a_file_of_labels_needs_keys_that_tell_samples_apart(
    runs: SmallRuns, call: Callable[..., Called], labelled: Callable[..., list[str]], tmp_path: Path
) -> None:
    """Shards often count their samples each from 0."""
    sets = labelled("image")
    file = tmp_path / "labels.csv"
    file.write_text("".join(f"s{i:04d},{i % 2}\n" for i in range(TRAIN)))
    found = call(runs.run("image"), *sets, "--labels", file)
    assert found.code == 2
    several = f"--labels: {TEST} of {TRAIN} keys of '{file}' are of several samples, such as"
    assert f"{several} 's0000', 's0001', 's0002'; give" in found.err


def test_names_that_look_like_numbers_are_no_numbers(
    runs: SmallRuns, call: Callable[..., Called], tmp_path: Path
) -> None:
    """Python reads 1_11 and 11_1 as 111."""
    names = ("1_11", "11_1")
    made = samples("image", TRAIN)
    bare = write_shard(tmp_path / "bare.tar", made)
    file = tmp_path / "labels.json"
    file.write_text(json.dumps({f"s{i:04d}": names[i % 2] for i in range(TRAIN)}))
    found = call(runs.run("image"), bare, "--labels", file, "--probes", "linear")
    assert found.code == 0, found.err
    assert found.json["tasks"]["data"]["class_names"] == sorted(names)
    classes = [sample | {"cls": names[i % 2].encode()} for i, sample in enumerate(made)]
    found = call(runs.run("image"), write_shard(tmp_path / "odd.tar", classes))
    words = f"DATA: {TRAIN} of {TRAIN} samples have no label; give every sample a .cls member that"
    assert (found.code, words in found.err) == (2, True), found.err


def test_a_quoted_class_keeps_its_lines(
    runs: SmallRuns, call: Callable[..., Called], tmp_path: Path
) -> None:
    bare = write_shard(tmp_path / "bare.tar", samples("image", TRAIN))
    names = ("dark\r\nroom", "dark room, \u2028lit")
    file = tmp_path / "labels.csv"
    with file.open("w", encoding="utf-8", newline="") as lines:
        csv.writer(lines).writerows([f"s{i:04d}", names[i % 2]] for i in range(TRAIN))
    found = call(runs.run("image"), bare, "--labels", file, "--probes", "linear")
    assert found.code == 0, found.err
    assert found.json["tasks"]["data"]["class_names"] == sorted(names)
    assert found.json["tasks"]["data"]["probes"]["linear"]["raw"]["accuracy"] > 0.9


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ('s0001,"light', "unexpected end of data"),
        ('s0001,"light" room', "',' expected after '\"'"),
    ],
)
def test_an_open_quote_is_told_with_its_line(
    row: str,
    reason: str,
    runs: SmallRuns,
    call: Callable[..., Called],
    labelled: Callable[..., list[str]],
    tmp_path: Path,
) -> None:
    file = tmp_path / "labels.csv"
    file.write_text(f's0000,"dark\nroom"\n{row}\ns0002,dark\n')
    found = call(runs.run("image"), labelled("image")[1], "--labels", file)
    assert found.code == 2
    words = f"--labels: cannot read '{file}': row that begins in line 3: {reason}; close its quotes"
    assert words in found.err


def test_transcripts_are_spelled(
    runs: SmallRuns, call: Callable[..., Called], tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    words = ("a b", "ba")
    made = [
        audio(rng, i % 2, 0.15 if i else 0.5) | {"txt": f" {words[i % 2]}\n".encode()}
        for i in range(40)
    ]
    path = write_shard(tmp_path / "spoken.tar", made)
    found = call(runs.run("audio"), path, "--ctc")
    assert found.code == 0, found.err
    task = found.json["tasks"]["data"]
    assert task["train_samples"] + task["test_samples"] == 39  # one is longer than the model takes
    by_source = task["probes"]["ctc"]
    assert list(by_source) == ["untrained", "trained"]
    for score in by_source.values():
        assert 0 <= score["low"] <= score["character_error_rate"] <= score["high"]
        assert len(score["layers"]) == DEPTH + 1
    assert "character error rate" in found.out
    assert {row["probe"] for row in found.csv} == {"ctc"}
    assert "character_error_rate" in found.csv[0]


@pytest.mark.parametrize(
    ("transcript", "count", "message"),
    [
        (None, 6, "DATA: 6 of 6 samples have no .txt member"),
        ("\u2003\n", 6, "DATA: 6 of 6 samples have no .txt member"),
        ("far too long " * 9, 6, "DATA: every transcript needs more frames than the encoder makes"),
        ("a b", 1, "DATA: a single sample leaves none for the test"),
    ],
)
def test_transcripts_that_cannot_be_spelled(
    transcript: str | None,
    count: int,
    message: str,
    runs: SmallRuns,
    call: Callable[..., Called],
    tmp_path: Path,
) -> None:
    member = {} if transcript is None else {"txt": transcript.encode()}
    rng = np.random.default_rng(0)
    path = write_shard(tmp_path / "s.tar", [audio(rng, 0, 0.15) | member for _ in range(count)])
    found = call(runs.run("audio"), path, "--ctc", "--no-baselines")
    assert (found.code, message in found.err) == (2, True), found.err


def token_labels(count: int, pieces: int) -> list[Sample]:
    """The pitch tells the first half's label; the second half has none."""
    rng = np.random.default_rng(count)
    labels = [[i % 2] * (pieces // 2) + [-1] * (pieces - pieces // 2) for i in range(count)]
    return [
        audio(rng, i % 2, 0.15) | {"labels.json": json.dumps(label).encode()}
        for i, label in enumerate(labels)
    ]


def test_tokens_are_told(
    runs: SmallRuns, call: Callable[..., Called], labelled: Callable[..., list[str]]
) -> None:
    sets = labelled("audio", token_labels(20, 7), token_labels(16, 8))
    found = call(runs.run("audio"), *sets, "--per", "token")
    assert found.code == 0, found.err
    task = found.json["tasks"]["data"]
    assert task["test_samples"] > 5 * 16
    assert list(task["probes"]) == ["linear", "knn_1", "knn_5", "knn_20", "knn_100"]
    linear = task["probes"]["linear"]
    assert linear["untrained"]["accuracy"] > 0.6
    assert "tokens for training" in found.out


def test_other_numbers_of_token_labels_are_refused(
    runs: SmallRuns, call: Callable[..., Called], tmp_path: Path
) -> None:
    made = [s | {"labels.json": b"[0, 1]"} for s in samples("image", 20)]
    found = call(runs.run("image"), write_shard(tmp_path / "t.tar", made), "--per", "token")
    assert found.code == 2
    assert "has 2 labels for 16 tokens in its .labels.json" in found.err


def test_sounds_without_token_labels_are_refused(
    runs: SmallRuns, call: Callable[..., Called], labelled: Callable[..., list[str]]
) -> None:
    part = token_labels(4, 6)
    for content in (b"[]", b"hello", b"[0.5]"):
        broken = [*part[:-1], part[-1] | {"labels.json": content}]
        found = call(runs.run("audio"), *labelled("audio", broken, part), "--per", "token")
        assert found.code == 2
        assert "--train: 's0003' has 0 labels for" in found.err
        assert "give a list of integers, -1 where there is none" in found.err


def test_classes_of_tokens_that_one_split_has_are_left_out(
    runs: SmallRuns,
    call: Callable[..., Called],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Inputs are split as wholes: what is in one of them only is in one split only."""
    made = token_labels(20, 8)
    made[4] = made[4] | {"labels.json": b"[0, 0, 0, 0, 0, 7, 7, 7]"}
    path = write_shard(tmp_path / "t.tar", made)
    found = call(runs.run("audio"), path, "--per", "token", "--probes", "linear")
    assert found.code == 0, found.err
    task = found.json["tasks"]["data"]
    assert (task["classes"], len(task["probes"]["linear"]["trained"]["layers"])) == (2, DEPTH + 1)
    told = [line for line in caplog.messages if "left out" in line]
    assert told == ["only one split has class 7; its tokens are left out"]


def test_token_labels_of_too_few_inputs_are_refused(
    runs: SmallRuns, call: Callable[..., Called], labelled: Callable[..., list[str]]
) -> None:
    one = token_labels(1, 6)[0] | {"labels.json": b"[0, 1]"}
    for part in ([one], token_labels(2, 6)):  # with no input left to fit on, and with one class
        found = call(runs.run("audio"), *labelled("audio", part, [one]), "--per", "token")
        assert found.code == 2
        assert f"--train: inputs with labelled tokens: {len(part)}, of" in found.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--train", "SET"], "--train: give --test as well"),
        (["--test", "SET"], "--test: give --train as well"),
        (["SET", "--train", "SET", "--test", "SET"], "DATA: give either DATA, or --train"),
        ([], "names no labelled set of its own (eval.tasks); give labelled shards"),
        (["BARE"], "DATA: 10 of 10 samples have no label; give every sample a .cls member"),
        (["ONE"], "DATA: all samples are of class 0; the probes need two classes"),
        (["RARE"], "DATA: there are too few samples of class 7 for two splits; each class"),
        (["RARE"], "; each class needs 6 for training (--few-shot=3) and 1 for the test; add"),
        (["RARE", "--probes", "knn"], "; each class needs 1 for training and 1 for the test; add"),
        (["FOUR", "--probes", "linear"], "DATA: every class has a single sample for training"),
        (["SET", "--neighbours", "1,33"], "--neighbours: 33, but DATA has 32 samples"),
        (["SET", "--neighbours", "0"], "--neighbours: 0 must be 1 or more"),
        (["SET", "--neighbours", "x"], "--neighbours: 'x' is no list"),
        (["SET", "--probes", "magic"], "--probes: there is no 'magic'; choose from linear"),
        (["SET", "--cache-gb", "0"], "--cache-gb: 0 must be above 0"),
        (["SET", "--cache-gb", "1e-6"], "--cache-gb: the features of one set need more than"),
        (["SET", "--batch-size", "0"], "--batch-size: 0 must be 1 or more"),
        (["SET", "--labels", "none.csv"], "--labels: cannot read 'none.csv'"),
        (["SET", "--labels", "none.csv", "--ctc"], "--labels: --ctc takes its transcripts"),
        (["SET", "--labels", "none.csv", "--per", "token"], "--labels: --per token takes"),
        (["SET", "--per", "token", "--probes", "few-shot"], "--probes: tokens (--per token)"),
        (["SET", "--per", "token"], "DATA: 40 of 40 samples have no .labels.json member"),
        (["none.tar"], "DATA: no file matches 'none.tar'"),
        (["SET", "--device", "abacus"], "--device: 'abacus' cannot be used"),
    ],
)
def test_mistakes_are_told(
    words: list[str],
    message: str,
    runs: SmallRuns,
    call: Callable[..., Called],
    labelled: Callable[..., list[str]],
    tmp_path: Path,
) -> None:
    shown = {
        "SET": labelled("image")[1],
        "BARE": str(write_shard(tmp_path / "bare.tar", samples("image", 10))),
        "FOUR": str(write_shard(tmp_path / "four.tar", samples("image", 4, 0, True))),
        "RARE": str(
            write_shard(
                tmp_path / "rare.tar",
                [*samples("image", 40, 0, True), samples("image", 1)[0] | {"cls": b"7"}],
            )
        ),
        "ONE": str(write_shard(tmp_path / "one.tar", samples("image", 40, 0, True)[::2])),
    }
    found = call(runs.run("image"), *(shown.get(word, word) for word in words))
    assert found.code == 2
    assert message in found.err
    assert not found.json


def test_too_few_labels_name_the_option(
    runs: SmallRuns, call: Callable[..., Called], labelled: Callable[..., list[str]]
) -> None:
    found = call(runs.run("image"), *labelled("image"), few_shot=11)
    assert found.code == 2
    words = "--train: there are too few samples of class 0, 1, 20 at the fewest; --few-shot=11"
    assert f"{words} needs 22 of each class" in found.err


def test_text_has_no_transcripts(
    runs: SmallRuns, call: Callable[..., Called], labelled: Callable[..., list[str]]
) -> None:
    found = call(runs.run("text"), *labelled("text"), "--ctc")
    assert (found.code, "--ctc: text has no transcripts" in found.err) == (2, True)


def test_an_empty_run_folder_is_told(
    call: Callable[..., Called], labelled: Callable[..., list[str]], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    found = call(tmp_path / "empty", *labelled("image"))
    assert found.code == 2
    assert str(tmp_path / "empty") in found.err
    assert found.err.count("\n") == 1


def test_features_that_are_not_finite_are_told(
    runs: SmallRuns,
    call: Callable[..., Called],
    labelled: Callable[..., list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = Backbone.hidden_states

    def broken(self: Backbone, *given: Any) -> tuple[list[Tensor], Tensor | None]:
        states, padding = plain(self, *given)
        states[1][0] = float("nan")
        return states, padding

    monkeypatch.setattr(Backbone, "hidden_states", broken)
    found = call(runs.run("image"), *labelled("image"))
    assert found.code == 3
    assert "probes: the encoder's features at layer 1 are not finite" in found.err
    assert not [path for path in (tmp_path / "cache").iterdir() if path.name.startswith(".")]
