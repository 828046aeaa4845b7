import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from vectors import Encoder, VectorPipeline

from selfdistill.config import EvalConfig, RunConfig, TaskConfig
from selfdistill.errors import BadSample, UserError
from selfdistill.probes.evaluate import Evaluator
from selfdistill.probes.labels import Named, check_labels
from selfdistill.probes.table import render

CLASSES = 4
Write = Callable[..., Path]


def run_config(tasks: dict[str, TaskConfig]) -> RunConfig:
    settings = EvalConfig(tasks=tasks, few_shot_labels=3, few_shot_draws=2, batch_size=16)
    return RunConfig("toy", "unused", None, None, None, eval=settings)


def judged(evaluator: Evaluator, untrained: Any, trained: Any) -> dict[str, Any]:
    evaluator.compare(untrained)
    return evaluator.evaluate(trained)


@pytest.fixture
def task(write_shard: Write) -> TaskConfig:
    labels = [i % CLASSES for i in range(120)]
    return TaskConfig([str(write_shard("train", labels))], [str(write_shard("test", labels[:60]))])


def test_end_to_end(task: TaskConfig) -> None:
    evaluator = Evaluator(run_config({"shapes": task}), VectorPipeline())
    result = judged(evaluator, Encoder(0.0), Encoder(1.0).train())
    assert json.loads(json.dumps(result)) == result
    assert list(result) == ["toy"]
    found = result["toy"]
    for probe in ("linear", "few_shot", "knn"):
        table = found[probe]
        assert table == found["tasks"]["shapes"][probe]
        assert table["layer"] == 1
        assert table["trained"] > 0.8 > 0.5 > table["untrained"]
        assert table["raw"] > 0.5
        for source in ("raw", "untrained", "trained"):
            p = table[source]
            expected = np.sqrt(p * (1 - p) / 60)
            assert table["standard_error"][source] == pytest.approx(expected)
    assert set(found["few_shot"]["std"]) == {"raw", "untrained", "trained"}
    assert found["task"] == "shapes"
    sizes = found["tasks"]["shapes"]
    assert (sizes["classes"], sizes["train_samples"], sizes["test_samples"]) == (4, 120, 60)
    assert "shapes" in render(result)


def test_raw_and_untrained_are_evaluated_once(task: TaskConfig) -> None:
    pipeline, untrained = VectorPipeline(), Encoder(0.5)
    asked: list[int] = []
    plain = pipeline.baseline
    pipeline.baseline = lambda example: (asked.append(1), plain(example))[1]  # type: ignore[method-assign]
    evaluator = Evaluator(run_config({"shapes": task}), pipeline)
    first = judged(evaluator, untrained, Encoder(1.0))
    calls = untrained.calls
    for given in (untrained, None):
        again = judged(evaluator, given, Encoder(1.0))
        assert again == first
    assert untrained.calls == calls
    assert len(asked) == 120 + 60


def test_without_an_untrained_encoder(task: TaskConfig) -> None:
    result = judged(Evaluator(run_config({"shapes": task}), VectorPipeline()), None, Encoder(1.0))
    table = result["toy"]["linear"]
    assert table["untrained"] is table["untrained_layer"] is None
    assert table["standard_error"]["untrained"] is None
    assert "untrained encoder" not in render(result)


def test_the_first_task_is_the_headline(task: TaskConfig, write_shard: Write) -> None:
    fewer = TaskConfig([str(write_shard("fewer", [0, 1] * 20))], [str(write_shard("two", [0, 1]))])
    evaluator = Evaluator(run_config({"pair": fewer, "all": task}), VectorPipeline())
    found = judged(evaluator, None, Encoder(1.0))["toy"]
    assert found["task"] == "pair"
    assert list(found["tasks"]) == ["pair", "all"]
    assert found["linear"] is found["tasks"]["pair"]["linear"]


def test_global_chance_is_left_alone(task: TaskConfig) -> None:
    before = torch.random.get_rng_state()
    judged(Evaluator(run_config({"shapes": task}), VectorPipeline()), Encoder(0.0), Encoder(1.0))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_nothing_is_opened_before_it_is_needed() -> None:
    evaluator = Evaluator(
        run_config({"gone": TaskConfig(["/no.tar"], ["/no.tar"])}), VectorPipeline()
    )
    with pytest.raises(UserError, match=r"eval\.tasks\.gone\.train: .*/no\.tar"):
        judged(evaluator, None, Encoder(1.0))


def test_missing_test_shards_are_named(task: TaskConfig) -> None:
    config = run_config({"half": replace(task, test=[])})
    with pytest.raises(UserError, match=r"eval\.tasks\.half\.test"):
        judged(Evaluator(config, VectorPipeline()), None, Encoder(1.0))


def test_no_task_is_told() -> None:
    with pytest.raises(UserError, match=r"eval\.tasks: is empty"):
        judged(Evaluator(run_config({}), VectorPipeline()), None, Encoder(1.0))


def test_an_unlabelled_shard_is_refused(task: TaskConfig, write_shard: Write) -> None:
    bare = replace(task, train=[str(write_shard("bare", [None] * 20))])
    with pytest.raises(UserError, match=r"eval\.tasks\.x\.train: 20 of 20 samples have no label"):
        judged(Evaluator(run_config({"x": bare}), VectorPipeline()), None, Encoder(1.0))


def test_bad_samples_are_told_once(task: TaskConfig, caplog: pytest.LogCaptureFixture) -> None:
    class Picky(VectorPipeline):
        def decode(self, sample: Mapping[str, bytes]) -> np.ndarray:
            if sample["cls"] == b"2" and not refused:
                refused.append(1)
                raise BadSample("broken")
            return super().decode(sample)

    refused: list[int] = []
    judged(Evaluator(run_config({"x": task}), Picky()), Encoder(0.0), Encoder(1.0))
    said = "eval.tasks.x.train: 1 of 120 samples are bad and left out; selfdistill inspect says why"
    assert caplog.messages == [said]


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ([0, 1] * 10, [0, -1], r"x\.test: 1 of 2 samples have no label"),
        ([7] * 20, [7], r"x\.train: all samples are of class 7; .* two classes"),
        ([0, 1, 2] * 10, [0, 1], r"x\.test: has no sample of class 2,"),
        ([0, 1] * 10, [0, 1, 5, 6], r"x\.train: has no sample of class 5, 6,"),
        ([0] * 20 + [1] * 5, [0, 1], r"x\.train: .* class 1, 5 at the fewest; .* needs 6 of each"),
    ],
)
def test_unusable_labels_are_refused(train: list[int], test: list[int], message: str) -> None:
    with pytest.raises(UserError, match=r"eval\.tasks\." + message):
        check_labels(Named.of_task("x"), np.array(train), np.array(test), few_shot_labels=3)


def test_classes_are_called_by_their_names() -> None:
    named = Named("--train", "--test", "--few-shot", classes=["cat", "dog", "owl"])
    with pytest.raises(UserError, match=r"--test: has no sample of class 'dog', 'owl', the other"):
        check_labels(named, np.array([0, 1, 2] * 10), np.array([0]), few_shot_labels=0)


def test_just_enough_labels_are_enough(task: TaskConfig, write_shard: Write) -> None:
    scarce = replace(task, train=[str(write_shard("scarce", [0, 1, 2, 3] * 6))])
    found = judged(Evaluator(run_config({"x": scarce}), VectorPipeline()), None, Encoder(1.0))
    assert found["toy"]["few_shot"]["trained"] > 0.5
