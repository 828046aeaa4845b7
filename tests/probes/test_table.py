from typing import Any

from selfdistill.probes.table import render


def table(raw: float, untrained: float | None, trained: float, error: float) -> dict[str, Any]:
    errors = {"raw": error, "untrained": untrained and error, "trained": error}
    return {
        "raw": raw,
        "untrained": untrained,
        "trained": trained,
        "layer": 3,
        "untrained_layer": untrained and 1,
        "standard_error": errors,
    }


def result(**changes: Any) -> dict[str, Any]:
    few_shot = table(0.5, 0.3, 0.52, 0.001)
    few_shot["std"] = {"raw": 0.03, "untrained": 0.02, "trained": 0.04}
    task = {
        "linear": table(0.751, 0.578, 0.72, 0.01),
        "few_shot": few_shot,
        "knn": table(0.4, 0.6, 0.5, 0.01),
        "classes": 26,
        "train_samples": 7800,
        "test_samples": 1560,
        **changes,
    }
    return {"image": {"task": "letters", "raw_input": "pixels", "tasks": {"letters": task}}}


def test_text() -> None:
    assert render(result()).splitlines() == [
        "image, letters: 7800 labelled samples for training, 1560 for the test, 26 classes, "
        "chance 3.8 %",
        "                  raw    untrained   trained (best layer)  vs untrained  vs raw",
        "linear    75.1 +- 1.0  57.8 +- 1.0  72.0 +- 1.0 (layer 3)         +14.2    -3.1",
        "few-shot  50.0 +- 3.0  30.0 +- 2.0  52.0 +- 4.0 (layer 3)         +22.0    +2.0",
        "kNN       40.0 +- 1.0  60.0 +- 1.0  50.0 +- 1.0 (layer 3)         -10.0   +10.0",
        "linear: +14.2 points over the untrained encoder, 3.1 points below the raw input (pixels)",
        "few-shot: +22.0 points over the untrained encoder, not clearly different from the raw "
        "input (pixels) (+2.0 points)",
        "kNN: 10.0 points below the untrained encoder, +10.0 points over the raw input (pixels)",
    ]


def test_without_an_untrained_encoder() -> None:
    text = render(result(linear=table(0.7, None, 0.9, 0.01)))
    lines = text.splitlines()
    assert " ".join(lines[2].split()) == "linear 70.0 +- 1.0 - 90.0 +- 1.0 (layer 3) - +20.0"
    assert "linear: +20.0 points over the raw input (pixels)" in lines


def test_a_block_for_each_task_in_ascii() -> None:
    both = result()
    both["image"]["tasks"]["digits"] = both["image"]["tasks"]["letters"]
    text = render(both)
    assert text.isascii()
    assert [block.split(":")[0] for block in text.split("\n\n")] == [
        "image, letters",
        "image, digits",
    ]
