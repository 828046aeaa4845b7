"""Bad data, bad configs, bad numbers and full disks: the exit code, and what the user is told."""

import contextlib
import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from launching import Ended, checkpoint, command, rows
from modality_cases.audio import sample as audio
from modality_cases.text import sample as text
from safetensors.torch import load_file
from tiny import samples, write_config, write_shard, write_task

from selfdistill.engine.guard import CollapseGuard
from selfdistill.engine.trainer import Trainer
from selfdistill.errors import HealthError
from selfdistill.objective.data2vec import Data2Vec

Config = Callable[..., str]
Pretrain = Callable[..., Ended]


def missing(path: Path) -> None:
    path.unlink(missing_ok=True)


def zero_bytes(path: Path) -> None:
    path.write_bytes(b"")


def no_tar(path: Path) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(5000))


def empty_folder(path: Path) -> None:
    path.mkdir()


def nothing_wanted(path: Path) -> None:
    write_shard(path, [{"doc": b"x"}])


def unreadable_gzip(path: Path) -> None:
    path.write_bytes(b"\x1f\x8b" + bytes(100))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (missing, ["no file matches", "check the path"]),
        (zero_bytes, ["is not a tar file", "empty"]),
        (no_tar, ["is not a tar file"]),
        (empty_folder, ["folder", "has no .tar"]),
        (nothing_wanted, ["no sample with a member", ".png", "found: doc"]),
        (unreadable_gzip, ["shard"]),
    ],
)
def test_unusable_shards(
    make: Callable[[Path], None],
    words: list[str],
    config: Config,
    here: Pretrain,
    tmp_path: Path,
) -> None:
    path = tmp_path / "bad.tar"
    make(path)
    ended = here(config(), f"data.train=[{path}]")
    assert ended.code == 2
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("selfdistill:")]
    assert line.startswith("selfdistill: data.train: ")
    assert str(path) in line
    for word in words:
        assert word in line
    assert "Traceback" not in ended.stderr


def test_truncated_shard(config: Config, pretrain: Pretrain, tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "cut.tar", samples("image", 30))
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size * 2 // 3])
    ended = pretrain(config(), f"data.train=[{shard}]", "train.steps=6")
    assert ended.code == 0
    assert "cut.tar: truncated" in ended.stderr
    found = re.search(r"on (\d+) samples", ended.stderr)
    assert found is not None
    assert 15 <= int(found[1]) < 30
    assert rows(tmp_path / "run")[-1]["step"] == 6


def corrupted(modality: str, share: float) -> list[dict[str, bytes]]:
    """Samples of which the first of every few are cut to a third."""
    made = samples(modality, 60)
    for sample in made[: round(60 * share)]:
        for extension in sample:
            sample[extension] = sample[extension][: len(sample[extension]) // 3]
    return made


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_bad_samples(
    workers: int, config: Config, pretrain: Pretrain, tmp_path: Path
) -> None:
    shard = write_shard(tmp_path / "bad.tar", corrupted("image", 0.6))
    ended = pretrain(config(), f"data.train=[{shard}]", f"data.workers={workers}")
    assert ended.code == 4
    last = ended.stderr.splitlines()[-1]
    assert "skip budget exceeded" in last
    assert "data.max_bad_share allows 5.0%" in last
    assert re.search(r"\d+ x undecodable image", last)
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("workers", [0, 2])
def test_few_bad_samples(workers: int, config: Config, pretrain: Pretrain, tmp_path: Path) -> None:
    bad = corrupted("image", 0.05)
    bad[0] = {"png": b""}
    shard = write_shard(tmp_path / "bad.tar", bad)
    words = [f"data.train=[{shard}]", f"data.workers={workers}", "data.max_bad_share=0.15"]
    ended = pretrain(config(), *words, "train.steps=30")
    assert ended.code == 0, ended.stderr
    assert "skipped s0000: empty image" in ended.stderr
    assert "skipped s0001: undecodable image" in ended.stderr
    counts = [row["bad_samples"] for row in rows(tmp_path / "run")]
    assert counts == sorted(counts)
    # 240 positions are four epochs, plus a replacement now and then
    assert 12 <= counts[-1] <= 16
    state = json.loads((checkpoint(tmp_path / "run", 30) / "state.json").read_text())
    assert sum(state["bad_samples"]["image"]["counts"].values()) == counts[-1]


@pytest.mark.parametrize("workers", [0, 1])
def test_every_clip_too_short(
    workers: int, config: Config, pretrain: Pretrain, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    shard = write_shard(tmp_path / "short.tar", [audio(rng, 0, 0.005) for _ in range(20)])
    words = [f"data.train=[{shard}]", f"data.workers={workers}"]
    ended = pretrain(config("audio"), *words)
    assert ended.code == 4
    last = ended.stderr.splitlines()[-1]
    assert "every sample tried was bad" in last
    assert "audio shorter than the feature encoder or input.min_seconds needs" in last
    assert "Traceback" not in ended.stderr


def test_text_that_is_no_text(config: Config, pretrain: Pretrain, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    passages = [text(rng, 0) for _ in range(40)] + [{"txt": b"\xff\xfe\x00"}, {"txt": b"  "}]
    shard = write_shard(tmp_path / "odd.tar", passages)
    words = [f"data.train=[{shard}]", "encoder.vocab_size=28", "data.max_bad_share=0.2"]
    ended = pretrain(config("text"), *words)
    assert ended.code == 0, ended.stderr
    assert "skipped s0040: text is not UTF-8" in ended.stderr
    assert "skipped s0041: empty text" in ended.stderr


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.widht=16", "model.widht: no such key; the nearest valid one is model.width"),
        ("optim.lr=fast", "optim.lr: "),
        ("optim.lr=-1", "optim.lr: -1.0 must be"),
        ("train.steps=2.5", "train.steps: "),
        ("optim.betas=[0.9]", "optim.betas: [0.9] does not fit"),
        ("optim.betas=[a,b]", "optim.betas: "),
        ("data.train={a: 1}", "data.train: "),
        ("train=3", "train: 3 does not fit"),
        ("eval.tasks.x.trian=[y]", "eval.tasks.x.trian: "),
        ("train.precision=fp8", "train.precision: "),
        ("model.heads=3", "model.heads: 3 does not divide model.width 16"),
        ("objective.average_top_k_layers=3", "objective.average_top_k_layers: 3 must be"),
        ("optim.warmup_steps=60", "optim.warmup_steps: 60 must be"),
        ("optim.min_lr=1", "optim.min_lr: 1.0 must not be more than"),
        ("optim.schedule=tri_stage", "optim.warmup_steps: 5 has no effect on tri_stage"),
        ("train.accumulate=3", "train.batch_size: 8 is not a multiple of train.accumulate 3"),
        ("mask.num_patches=16", "mask.num_patches: 16 of 16 patches"),
        ("input.size=[16,15]", "input.size: [16, 15] must be"),
        ("modality=smell", "modality: there is no 'smell'"),
        ("seed=${oc.env:HOME}", "seed: '${oc.env:HOME}' interpolates"),
        ("nonsense", "'nonsense' is no override; write key=value"),
    ],
)
def test_bad_config(
    override: str, message: str, config: Config, here: Pretrain, tmp_path: Path
) -> None:
    # the shards are not there: whoever reads them first complains about them
    ended = here(config(), f"data.train=[{tmp_path}/none.tar]", override)
    assert ended.code == 2
    assert message in ended.stderr
    assert "data.train: no file" not in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "run").exists()


def test_bad_config_file(here: Pretrain, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    assert f"there is no file '{path}'" in here(str(path)).stderr
    path.write_text("modality: [image\n")
    ended = here(str(path))
    assert ended.code == 2
    assert f"{path} is not plain YAML" in ended.stderr
    path.write_text("")
    assert "holds no sections" in here(str(path)).stderr
    path.write_text("run_dir: x\n")
    assert "modality: missing" in here(str(path)).stderr


def test_exploding_weights(config: Config, pretrain: Pretrain, tmp_path: Path) -> None:
    words = ["optim.lr=1e38", "optim.warmup_steps=0", "optim.clip_norm=0", "log.every=3"]
    ended = pretrain(config(), *words, "checkpoint.every=1", "train.max_left_out=4")
    assert ended.code == 3
    last = ended.stderr.splitlines()[-1]
    assert "step 5: 4 steps in a row were left out (train.max_left_out)" in last
    assert "the loss is nan" in last
    # that of step 1 holds the exploded weights
    assert "there is no good checkpoint to go back to" in last
    assert "Traceback" not in ended.stderr


@pytest.fixture
def nan_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Make the loss NaN in these steps, counted from 1."""

    def patch(steps: Any) -> None:
        forward, step = Data2Vec.forward, Trainer.step
        now = [0]

        def noting(self: Trainer, *parts: Any) -> None:
            now[0] = self.step_count + 1
            step(self, *parts)

        def spoilt(self: Data2Vec, batches: Any) -> Any:
            if now[0] in steps:
                nan = float("nan")
                batches = {n: replace(b, inputs=b.inputs * nan) for n, b in batches.items()}
            return forward(self, batches)

        monkeypatch.setattr(Trainer, "step", noting)
        monkeypatch.setattr(Data2Vec, "forward", spoilt)

    return patch


def test_left_out_steps_change_nothing(
    config: Config, here: Pretrain, nan_at: Callable[[Any], None], tmp_path: Path
) -> None:
    nan_at({3, 4, 7})
    words = ["train.steps=9", "checkpoint.every=1", "checkpoint.keep=9", "train.max_left_out=3"]
    ended = here(config("audio"), *words)
    assert ended.code == 0, ended.stderr
    run = tmp_path / "run"
    model = {n: load_file(checkpoint(run, n) / "model.safetensors") for n in range(1, 10)}
    parts = ("student.", "teacher.")
    for before, after in ((2, 3), (3, 4), (6, 7)):
        for name, value in model[before].items():
            assert torch.equal(value, model[after][name]), name
    for before, after in ((1, 2), (4, 5), (7, 8)):
        changed = {
            n for n, value in model[before].items() if not torch.equal(value, model[after][n])
        }
        assert all(any(name.startswith(part) for name in changed) for part in parts)
    for model_of_step in model.values():
        assert all(torch.isfinite(value).all() for value in model_of_step.values())
    logged = rows(run)
    assert [row["left_out_steps"] for row in logged] == [0, 0, 1, 2, 2, 2, 3, 3, 3]
    assert [row["loss"] is None for row in logged] == [n in (3, 4, 7) for n in range(1, 10)]
    assert all(row["lr"] is not None for row in logged)


def test_interval_skips_what_was_left_out(
    config: Config, here: Pretrain, nan_at: Callable[[Any], None], tmp_path: Path
) -> None:
    nan_at({2})
    assert here(config("audio"), "train.steps=6", "log.every=3").code == 0
    logged = rows(tmp_path / "run")
    assert [row["step"] for row in logged] == [3, 6]
    for key in ("loss", "grad_norm", "target_std", "prediction_std", "masked_share"):
        assert logged[0][key] > 0


def test_collapse_keeps_the_state(config: Config, pretrain: Pretrain, tmp_path: Path) -> None:
    words = ["guard.after_steps=4", "guard.min_target_std=50", "guard.patience=2"]
    ended = pretrain(config(), *words)
    assert ended.code == 3
    last = ended.stderr.splitlines()[-1]
    assert "collapsed at step 6: the deviation of the targets fell to" in last
    assert "below 50 (guard.min_target_std)" in last
    assert f"The state is kept in {checkpoint(tmp_path / 'run', 6)}" in last
    assert (checkpoint(tmp_path / "run", 6) / "manifest.json").exists()


def test_a_collapse_that_an_evaluation_finds_keeps_the_state(
    config: Config, here: Pretrain, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def found(*_: Any) -> None:
        raise HealthError("it reads less than before")

    monkeypatch.setattr(CollapseGuard, "check_accuracy", found)
    tasks = json.dumps({"label": write_task(tmp_path / "task", "image")})
    ended = here(config(), "eval.every=2", f"eval.tasks={tasks}")
    assert ended.code == 3
    kept = checkpoint(tmp_path / "run", 2)
    last = ended.stderr.splitlines()[-1]
    assert last == f"selfdistill: it reads less than before. The state is kept in {kept}"
    assert (kept / "manifest.json").exists()


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    folder.mkdir()
    if os.system(f"mount -t tmpfs -o size={size} tmpfs '{folder}' 2>/dev/null"):
        pytest.skip("needs the right to mount a tmpfs")
    try:
        yield
    finally:
        os.system(f"umount -l '{folder}'")


def test_disk_is_full(config: Config, pretrain: Pretrain, tmp_path: Path) -> None:
    with small_disk(tmp_path / "run", "1200k"):
        words = [config("audio"), "checkpoint.every=5", "checkpoint.keep=100"]
        full = pretrain(*words)
        assert full.code == 1
        last = full.stderr.splitlines()[-1]
        assert "cannot save the checkpoint of step" in last
        assert re.search(r"needs \d+ bytes, \d+ are free in", last)
        assert "run the same command again" in last
        assert "Traceback" not in full.stderr
        named = re.search(r"last complete checkpoint is (\S+step-\d+)", last)
        assert named is not None
        kept = sorted((tmp_path / "run" / "checkpoints").iterdir())
        assert kept[-1] == Path(named[1])
        again = pretrain(*words, "checkpoint.keep=1", "checkpoint.every=1000")
        assert f"resumed from {named[1]}" in again.stderr
        shutil.rmtree(kept[0])
        shutil.rmtree(kept[1])
        again = pretrain(*words, "checkpoint.keep=1", "checkpoint.every=1000")
        assert again.code == 0, again.stderr


def test_disk_is_full_for_the_log(
    config: Config, here: Pretrain, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import builtins

    real = builtins.open

    def full(path: Any, *parts: Any, **named: Any) -> Any:
        if str(path).endswith("metrics.jsonl"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, *parts, **named)

    monkeypatch.setattr("builtins.open", full)
    ended = here(config())
    assert ended.code == 1
    assert f"cannot write {tmp_path / 'run' / 'metrics.jsonl'}" in ended.stderr


def test_run_dir_is_a_file(config: Config, here: Pretrain, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("keep me")
    ended = here(config())
    assert ended.code == 2
    assert f"run_dir: cannot write to '{tmp_path / 'run'}'" in ended.stderr
    assert (tmp_path / "run").read_text() == "keep me"


def test_labelled_set_without_labels(config: Config, here: Pretrain, tmp_path: Path) -> None:
    task = json.dumps(write_task(tmp_path, "image", labelled=False))
    ended = here(config(), f"eval.tasks.shade={task}")
    assert ended.code == 2
    assert "eval.tasks.shade.train: 24 of 24 samples have no label" in ended.stderr
    assert rows(tmp_path / "run") == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["eval.tasks.x.train=[/no/such.tar]"], "eval.tasks.x.train: no file matches"),
        (["eval.tasks.shade.test=[]"], "eval.tasks.shade.test: is empty"),
        (["eval.few_shot_labels=10"], "eval.few_shot_labels=10 needs 20 of each class"),
    ],
)
def test_labelled_set_that_does_not_do(
    words: list[str], message: str, config: Config, here: Pretrain, tmp_path: Path
) -> None:
    task = json.dumps(write_task(tmp_path, "image"))
    ended = here(config(), f"eval.tasks.shade={task}", *words)
    assert ended.code == 2
    assert message in ended.stderr
    assert rows(tmp_path / "run") == []


def test_odd_paths_in_a_plain_locale(shards: Callable[[str], list[str]], tmp_path: Path) -> None:
    run = tmp_path / "my runs" / "l\u00e4uft \u6771"
    path = write_config(tmp_path / "c.yaml", "text", shards("text"), run)
    words = ["-m", "selfdistill", "pretrain", str(path), "train.steps=6"]
    ended = command(*words, LC_ALL="C")
    assert ended.code == 0, ended.stderr
    assert (checkpoint(run, 6) / "manifest.json").exists()
    again = command(*words[:-1], LC_ALL="C")
    assert again.code == 0, again.stderr
    assert "resumed from" in again.stderr
    environment = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    assert environment["command"][1:] == words[2:-1]
