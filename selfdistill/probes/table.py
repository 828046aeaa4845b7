"""The evaluation as plain text."""

from collections.abc import Mapping, Sequence
from math import hypot
from typing import Any

SOURCES = ("raw", "untrained", "trained")
PROBES = {"linear": "linear", "few_shot": "few-shot", "knn": "kNN"}
BASELINES = {"untrained": "the untrained encoder", "raw": "the raw input"}
HEADER = ("", "raw", "untrained", "trained (best layer)", "vs untrained", "vs raw")
NONE = "-"


def render(result: Mapping[str, Any]) -> str:
    """The result of ``Evaluator.evaluate`` as a table and a sentence per probe, in ASCII.

    Accuracies are percent with their standard error (few-shot: with the deviation over the
    draws), differences are percentage points.
    """
    blocks = [
        _block(f"{modality}, {name}", task, found.get("raw_input", ""))
        for modality, found in result.items()
        for name, task in found["tasks"].items()
    ]
    return "\n\n".join(blocks)


def _block(title: str, task: Mapping[str, Any], raw_input: str) -> str:
    sizes = (
        f"{task['train_samples']} labelled samples for training, {task['test_samples']} for the "
        f"test, {task['classes']} classes, chance {100 / task['classes']:.1f} %"
    )
    rows = [HEADER, *(_row(PROBES[probe], task[probe]) for probe in PROBES)]
    lines = aligned(rows)
    sentences = [_sentence(PROBES[probe], task[probe], raw_input) for probe in PROBES]
    return "\n".join([f"{title}: {sizes}", *lines, *sentences])


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def _row(name: str, table: Mapping[str, Any]) -> tuple[str, ...]:
    trained = f"{_percent(table, 'trained')} (layer {table['layer']})"
    differences = [
        NONE
        if table[baseline] is None
        else f"{points_over(table['trained'], table[baseline]):+.1f}"
        for baseline in BASELINES
    ]
    return (name, _percent(table, "raw"), _percent(table, "untrained"), trained, *differences)


def _percent(table: Mapping[str, Any], source: str) -> str:
    if table[source] is None:
        return NONE
    return f"{100 * table[source]:.1f} +- {100 * _spread(table, source):.1f}"


def points_over(accuracy: float, other: float) -> float:
    """What one accuracy is over another, in percentage points of the rounded figures, so that it
    adds up for who checks it."""
    return round(100 * accuracy, 1) - round(100 * other, 1)


def _spread(table: Mapping[str, Any], source: str) -> float:
    return float(table.get("std", table["standard_error"])[source])


def _sentence(name: str, table: Mapping[str, Any], raw_input: str) -> str:
    parts = []
    for baseline, title in BASELINES.items():
        if table[baseline] is None:
            continue
        if baseline == "raw" and raw_input:
            title += f" ({raw_input})"
        error = hypot(_spread(table, "trained"), _spread(table, baseline))
        parts.append(compared(table["trained"], table[baseline], error, title))
    return f"{name}: {', '.join(parts)}"


def compared(accuracy: float, other: float, error: float, title: str) -> str:
    """How an accuracy stands to that of ``title``, in words.

    Args:
        error: standard error of the difference.
    """
    over = points_over(accuracy, other)
    if abs(over) <= 2 * 100 * error:
        return f"not clearly different from {title} ({over:+.1f} points)"
    return f"+{over:.1f} points over {title}" if over > 0 else f"{-over:.1f} points below {title}"
