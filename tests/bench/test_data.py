"""What the data side of a run gives, and where its time goes."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from launching import ENVIRONMENT
from modality_cases import MODALITIES
from modality_cases.audio import RATE
from modality_cases.audio import sample as audio
from modality_cases.image import sample as image
from small_runs import SmallRuns
from tiny import JOINT, write_config, write_shard

from selfdistill.bench import data as bench
from selfdistill.bench.data import STAGES, bench_data
from selfdistill.bench.data_table import table
from selfdistill.cli import main
from selfdistill.config_files.load import load_config
from selfdistill.errors import DataBudgetError, UserError
from selfdistill.modalities.base import load_modality
from selfdistill.modalities.image.data import ImagePipeline
from selfdistill.run_data import prepared_aside


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in ENVIRONMENT.items():
        monkeypatch.setenv(key, value)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def measured(path: Path, *words: str) -> dict[str, Any]:
    """Of a config file, as quickly as it goes."""
    return bench_data(load_config(path, words, load_modality), seconds=0)


def config_of(tmp_path: Path, modality: str, *samples: Mapping[str, bytes]) -> Path:
    shard = write_shard(tmp_path / "train.tar", [dict(sample) for sample in samples])
    return write_config(tmp_path / "config.yaml", modality, [str(shard)], tmp_path / "run")


@pytest.mark.parametrize("modality", MODALITIES)
def test_the_stages_make_up_the_whole(modality: str, runs: SmallRuns, tmp_path: Path) -> None:
    result = measured(runs.config_file(modality, tmp_path / "run"))
    (name, found), *others = result["modalities"].items()
    assert (name, others) == (modality, [])
    assert (found["samples"], found["shards"], found["batch"], found["bad"]) == (48, 2, 8, {})
    assert tuple(found["share"]) == tuple(found["seconds"]) == STAGES
    assert sum(found["share"].values()) == pytest.approx(1)
    assert min(found["seconds"].values()) > 0
    per_sample = sum(found["seconds"].values())
    assert found["samples_per_second"] == pytest.approx(1 / per_sample)
    assert result["step"]["samples"] == {modality: 8}
    assert result["step"]["one_core_seconds"] == pytest.approx(8 * per_sample)
    speed = result["loader"]["samples_per_second"]
    assert result["step"]["loader_seconds"] == pytest.approx(8 / speed)
    assert not (tmp_path / "run").exists()


def test_tokens_and_lengths_are_those_of_the_samples(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    pictures = [image(rng, 0) for _ in range(8)]
    found = measured(config_of(tmp_path / "i", "image", *pictures))["modalities"]["image"]
    assert found["tokens_per_second"] / found["samples_per_second"] == pytest.approx(16)
    assert "length_unit" not in found
    # 0.3 s are cropped to 0.2 s, which are 38 frames; 0.1 s are 18
    clips = [audio(rng, 0, seconds) for seconds in (0.1, 0.3)]
    path = config_of(tmp_path / "a", "audio", *clips)
    result = measured(path, "train.batch_size=2", "input.max_seconds=0.2")
    found = result["modalities"]["audio"]
    assert found["length_unit"] == "seconds"
    assert found["length_per_second"] / found["samples_per_second"] == pytest.approx(0.15)
    frames = [(int(seconds * RATE) - 10) // 5 + 1 for seconds in (0.1, 0.2)]
    tokens = sum((n - 4) // 4 + 1 for n in frames) / 2
    assert found["tokens_per_second"] / found["samples_per_second"] == pytest.approx(tokens)
    assert result["loader"]["padded_share"] == {"audio": pytest.approx(0.25)}
    several = measured(path, "train.batch_size=2", "mask.num_masks=3")["modalities"]["audio"]
    assert several["tokens_per_second"] / several["samples_per_second"] == pytest.approx(tokens)


def test_time_is_told_by_stage(
    runs: SmallRuns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = runs.config_file("image", tmp_path / "run")
    decode = ImagePipeline.decode

    def slow(self: ImagePipeline, sample: Mapping[str, bytes]) -> Any:
        end = time.thread_time() + 0.005
        while time.thread_time() < end:
            pass
        return decode(self, sample)

    monkeypatch.setattr(ImagePipeline, "decode", slow)
    found = measured(path)["modalities"]["image"]
    assert found["share"]["decode"] > 0.5
    assert 0.005 < found["seconds"]["decode"] < 0.05


def test_bad_samples_are_counted_and_left_out(tmp_path: Path, rng: np.random.Generator) -> None:
    samples = [image(rng, 0), image(rng, 1), image(rng, 0), {"png": b"no image"}]
    found = measured(config_of(tmp_path, "image", *samples), "train.batch_size=4")
    assert found["modalities"]["image"]["bad"] == {"undecodable image": 5}
    assert found["modalities"]["image"]["batch"] == 3
    few = config_of(tmp_path, "image", image(rng, 0), *3 * [{"png": b"no image"}])
    found = measured(few, "train.batch_size=1")["modalities"]["image"]
    assert (found["batch"], found["bad"]) == (1, {"undecodable image": 16})
    with pytest.raises(DataBudgetError, match="every sample tried was bad"):
        measured(config_of(tmp_path, "image", {"png": b"no image"}))


def test_bad_shards_may_be_left_out(runs: SmallRuns, tmp_path: Path) -> None:
    (tmp_path / "bad.tar").write_bytes(b"")
    words = [f"data.train=[{tmp_path / 'bad.tar'},{','.join(runs.shards('text'))}]"]
    path = runs.config_file("text", tmp_path / "run")
    with pytest.raises(UserError, match=r"bad.tar' is not a tar file"):
        measured(path, *words)
    # the tokenizer is made of the first good one
    found = measured(path, *words, "data.skip_bad_shards=true")["modalities"]["text"]
    assert (found["samples"], found["shards"]) == (48, 2)


def test_large_batches_are_cut_and_told_in_full(
    runs: SmallRuns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "BATCH_SECONDS", 0.02)
    words = ("train.batch_size=100000", "train.accumulate=2")
    result = measured(runs.config_file("image", tmp_path / "run"), *words)
    found = result["modalities"]["image"]
    assert 1 <= found["batch"] < 1000
    assert result["step"]["samples"] == {"image": 100_000}
    expected = 100_000 / found["samples_per_second"]
    assert result["step"]["one_core_seconds"] == pytest.approx(expected)


def test_batches_may_be_made_by_length(runs: SmallRuns, tmp_path: Path) -> None:
    result = measured(runs.config_file("audio", tmp_path / "run"), "data.batch_length=2")
    mean = result["modalities"]["audio"]
    mean_length = mean["length_per_second"] / mean["samples_per_second"]
    assert result["step"]["samples"]["audio"] == pytest.approx(2 / mean_length, rel=0.3)
    by_count = measured(runs.config_file("audio", tmp_path / "run"))
    padded = [r["loader"]["padded_share"]["audio"] for r in (result, by_count)]
    assert 0 < padded[0] < 0.7 * padded[1]


def test_several_modalities_share_the_loader(runs: SmallRuns, tmp_path: Path) -> None:
    result = measured(runs.config_file(JOINT, tmp_path / "run"), "data.workers=1")
    assert result["step"]["samples"] == dict.fromkeys(MODALITIES, 12 // len(MODALITIES))
    rates = [found["samples_per_second"] for found in result["modalities"].values()]
    assert result["step"]["one_core_seconds"] == pytest.approx(
        sum(12 / len(MODALITIES) / rate for rate in rates)
    )
    assert result["loader"]["workers"] == 1
    assert set(result["loader"]["padded_share"]) == set(MODALITIES)
    words = table(result)
    assert "loader with 1 worker: " in words
    count = 12 // len(MODALITIES)
    assert f"a step of {count} audio samples, {count} image samples, " in words


def test_a_run_is_left_as_it_is(runs: SmallRuns) -> None:
    """Its tokenizer is taken, although another would be made of the first shard."""
    run = runs.run("text")
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    with prepared_aside(runs.config("text", run_dir=run)) as parts:
        (part,) = parts.values()
        assert Path(part.input.tokenizer).parent != run
        content = Path(part.input.tokenizer).read_text()
        assert content == (run / "tokenizer.json").read_text()
        assert part.run_dir == str(run)
        assert len(part.data.train) == 2
    assert not Path(part.input.tokenizer).exists()
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_it_is_not_done_by_several_processes(
    runs: SmallRuns, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["bench", "data", str(runs.config_file("image", tmp_path / "run"))]) == 2
    assert "bench data: works in one process only" in capsys.readouterr().err


def test_on_the_command_line(
    runs: SmallRuns, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    path = str(runs.config_file("audio", tmp_path / "run"))
    monkeypatch.setattr(bench, "MIN_ROUNDS", 1)
    monkeypatch.setattr(bench, "cores", lambda: 2)
    monkeypatch.setattr(bench_data, "__defaults__", (0.0,))
    assert main(["bench", "data", path, "data.workers=0", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["cores"] == 2
    result["loader"]["workers"] = 3
    words = table(result)
    assert "audio: 48 samples in 2 shards; batches of 8\n" in words
    assert "hours/hour" in words
    assert words.endswith("data.workers: 3, but there are 2 cores")
    assert main(["bench", "data", path, "data.workers=0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == (["audio:", "us", *STAGES, "one", "loader", "a"])
    assert main(["bench", "data", "nowhere.yaml"]) == UserError.exit_code
    assert "there is no file 'nowhere.yaml'" in capsys.readouterr().err
