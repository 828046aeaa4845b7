"""What shards must not change, and what they must not cost."""

import json
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from launching import rows
from small_runs import saved
from tiny import write_task
from worlds import SHARDED, Job, train

from selfdistill.data.steps import data_step
from selfdistill.engine import checkpoint
from selfdistill.engine.sharding import settings, shard
from selfdistill.engine.trainer import Trainer
from selfdistill.errors import UserError
from selfdistill.objective.data2vec import Data2Vec

Words = Callable[..., list[str]]
ALL = "model.layer_drop=0"
"""Which blocks are left out depends on the number of micro-batches."""
FEW = ["train.steps=4", "optim.warmup_steps=1", "checkpoint.every=4"]


def as_on_a_gpu() -> None:
    """Accelerate takes no notice of FSDP on the CPU; let it."""
    start = Accelerator.__init__

    def started(self: Accelerator, *parts: Any, **named: Any) -> None:
        start(self, *parts, **named)
        AcceleratorState._shared_state["distributed_type"] = DistributedType.FSDP
        AcceleratorState._shared_state["fsdp_plugin"] = FullyShardedDataParallelPlugin()
        assert self.is_fsdp2

    Accelerator.__init__ = started


def counted() -> None:
    """Print how often gradients travel in each step."""
    step, times = Trainer.step, [0]

    def patch(name: str) -> None:
        travel = getattr(torch.distributed, name)

        def travelled(*parts: Any, **named: Any) -> Any:
            times[0] += 1
            return travel(*parts, **named)

        setattr(torch.distributed, name, travelled)

    for name in ("reduce_scatter_tensor", "reduce_scatter_single"):  # as versions of torch call it
        if hasattr(torch.distributed, name):
            patch(name)

    def stepped(self: Trainer, *parts: Any) -> None:
        times[0] = 0
        step(self, *parts)
        print(f"gradients travelled {times[0]} times", flush=True)

    Trainer.step = stepped


def infinite_on_one() -> None:
    """One process has an infinite loss, but finite gradients, in the second step."""
    forward, calls = Data2Vec.forward, [0]

    def spoilt(self: Data2Vec, batches: Any) -> Any:
        found = forward(self, batches)
        calls[0] += 1
        if calls[0] == 2 and os.environ["RANK"] == "1":
            return {n: o._replace(loss=o.loss + torch.inf) for n, o in found.items()}
        return found

    Data2Vec.forward = spoilt


def spoilt_on_one() -> None:
    """One process has no number for a loss in two steps of the data, in the run called "back"."""
    step, forward, now = Trainer.step, Data2Vec.forward, [-1]

    def noted(self: Trainer, *parts: Any) -> None:
        passed_over = self.recovery.guard.passed_over
        here = Path(self.config.run_dir).name == "back" and os.environ["RANK"] == "1"
        now[0] = data_step(self.step_count, passed_over) if here else -1
        step(self, *parts)

    def spoilt(self: Data2Vec, batches: Any) -> Any:
        factor = torch.nan if now[0] in (2, 3) else 1.0
        found = forward(self, batches)
        return {n: o._replace(loss=o.loss * factor) for n, o in found.items()}

    Trainer.step, Data2Vec.forward = noted, spoilt


def told_to_stop() -> None:
    """One process gets the signal of a batch system in the second step; the main one is slow to
    write, and the other says whether it waited for it."""
    step, fit, write = Trainer.step, Trainer.fit, checkpoint.write_checkpoint

    def interrupted(self: Trainer, *parts: Any) -> None:
        if self.step_count == 1 and os.environ["RANK"] == "1":
            signal.raise_signal(signal.SIGUSR1)
        step(self, *parts)

    def slowly(*parts: Any) -> None:
        time.sleep(1)
        write(*parts)

    def watched(self: Trainer, *parts: Any) -> None:
        try:
            fit(self, *parts)
        finally:
            print("written:", [*Path(self.config.run_dir).glob("checkpoints/step-*")], flush=True)

    Trainer.step, Trainer.fit, checkpoint.write_checkpoint = interrupted, watched, slowly


@pytest.fixture(scope="module")
def runs(words: Words, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharding")
    tasks = f"eval.tasks.pitch={json.dumps(write_task(folder / 'task', 'text'))}"

    def job(name: str, *more: str, sharded: bool = True, **named: Any) -> Job:
        return Job(words("text", folder / name, *FEW, *more), sharded, **named)

    jobs = [
        job("whole", tasks, "eval.every=2", sharded=False),
        job("shards", tasks, "eval.every=2"),
        job("shards", tasks, "eval.every=2"),
        job("half", "train.precision=bf16"),
        job("half whole", "train.precision=bf16", sharded=False),
        job("thrifty", "train.activation_checkpointing=true"),
        job("kept", settings={"FSDP_RESHARD_AFTER_FORWARD": "false"}),
        job("counted", ALL, setup=counted),
        job("counted, accumulated", ALL, "train.accumulate=4"),
        job("stopped", setup=told_to_stop, code=75),
    ]
    texts = train(2, jobs, folder / "output")
    texts += train(
        2,
        [
            job("infinite", setup=infinite_on_one),
            job("back", "checkpoint.every=1", "train.max_left_out=2", setup=spoilt_on_one),
            job("gpu", ALL, "train.accumulate=2", setup=as_on_a_gpu),
        ],
        folder / "other output",
    )
    (folder / "printed.json").write_text(json.dumps(texts))
    return folder


def printed(runs: Path, number: int) -> str:
    text: str = json.loads((runs / "printed.json").read_text())[number]
    return text


@pytest.mark.parametrize("number", [1, 3, 5], ids=["shards", "half", "thrifty"])
def test_nothing_is_warned_of(number: int, runs: Path) -> None:
    assert "Warning" not in printed(runs, number)


def assert_close(run: Path, other: Path) -> None:
    ours, theirs = saved(run, 4), saved(other, 4)
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, rtol=0, atol=1e-5, msg=key)


def test_evaluations_are_the_same(runs: Path) -> None:
    found, wanted = (json.loads((runs / n / "eval.json").read_text()) for n in ("shards", "whole"))
    assert found == wanted
    for key in ("eval/pitch/linear", "eval/pitch/knn"):
        values = [[row.get(key) for row in rows(runs / name)] for name in ("shards", "whole")]
        assert values[0] == values[1]
        assert sum(value is not None for value in values[0]) == 2
    assert "is finished after 4 steps" in printed(runs, 2)


def test_in_half_precision_weights_and_averages_stay_in_full(runs: Path) -> None:
    full, half, whole = (rows(runs / name) for name in ("shards", "half", "half whole"))
    for figure in ("target_std", "loss"):
        assert half[0][figure] != full[0][figure]
        assert half[0][figure] == pytest.approx(full[0][figure], rel=0.01)
    for row, other in zip(half, whole, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], abs=1e-5)
    tensors = saved(runs / "half", 4).values()
    assert {t.dtype for t in tensors if t.is_floating_point()} == {torch.float32}


@pytest.mark.parametrize("name", ["thrifty", "kept"])
def test_recomputing_and_keeping_blocks_together_change_nothing(name: str, runs: Path) -> None:
    assert_close(runs / name, runs / "shards")


def test_gradients_travel_once_per_step(runs: Path) -> None:
    times = [
        {int(n) for n in re.findall(r"gradients travelled (\d+) times", printed(runs, number))}
        for number in (7, 8)
    ]
    assert times[0] == times[1]
    (of_a_step,) = times[0]
    assert of_a_step > 0
    assert_close(runs / "counted, accumulated", runs / "counted")


def test_a_loss_that_is_infinite_on_one_process_is_left_out_on_all(runs: Path) -> None:
    logged, whole = rows(runs / "infinite"), rows(runs / "half")
    assert [row["left_out_steps"] for row in logged] == [0, 1, 1, 1]
    assert [row["loss"] is None for row in logged] == [False, True, False, False]
    assert logged[2]["loss"] == pytest.approx(whole[2]["loss"], rel=0.3)


def test_all_go_back_together(runs: Path) -> None:
    run = runs / "back"
    assert [row["step"] for row in rows(run)] == [1, 2, 3, 4]
    assert (rows(run)[-1]["left_out_steps"], rows(run)[-1]["rollbacks"]) == (2, 1)
    lines = [json.loads(line) for line in (run / "left_out.jsonl").read_text().splitlines()]
    assert [line["data_step"] for line in lines] == [2, 3]
    # only the other process had something to tell, of its half of the batch
    assert [len(line["samples"]["text"]) for line in lines] == [4, 4]
    assert all(torch.isfinite(value).all() for value in saved(run, 4).values())


def test_a_signal_to_one_process_stops_all(runs: Path) -> None:
    assert [path.name for path in (runs / "stopped" / "checkpoints").iterdir()] == ["step-00000002"]
    assert "stopped after step 2 together with another process" in printed(runs, 9)
    of_the_other = (runs / "output" / "1").read_text()
    assert re.search(r"written: \[.*/step-00000002'\)\]", of_the_other)


def test_accelerate_s_own_way_is_the_same(runs: Path) -> None:
    assert_close(runs / "gpu", runs / "counted")
    for row, wanted in zip(rows(runs / "gpu"), rows(runs / "counted"), strict=True):
        assert row["grad_norm"] == pytest.approx(wanted["grad_norm"], rel=1e-4)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("FSDP_VERSION", "1", "fsdp_version: .* set it to 2"),
        ("FSDP_OFFLOAD_PARAMS", "true", "fsdp_offload_params: .* set it to false"),
        ("FSDP_ACTIVATION_CHECKPOINTING", "true", "train.activation_checkpointing to true"),
    ],
)
def test_ways_to_shard_that_do_not_work_are_refused(
    key: str, value: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert settings() is None
    for name, setting in (SHARDED | {key: value}).items():
        monkeypatch.setenv(name, setting)
    with pytest.raises(UserError, match=message):
        settings()


def test_fp16_is_refused() -> None:
    scaled = cast(Accelerator, SimpleNamespace(scaler=object()))
    with pytest.raises(UserError, match=r"train\.precision: fp16 .* choose bf16"):
        shard(cast(Data2Vec, None), scaled, FullyShardedDataParallelPlugin(fsdp_version=2))
