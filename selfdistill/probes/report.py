"""What ``selfdistill probe`` found, as plain text, JSON and CSV."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from selfdistill.probes.result import ACCURACY, ERROR
from selfdistill.probes.table import NONE, PROBES, SOURCES, aligned

TITLES = {**PROBES, "attentive": "attentive", "ctc": "CTC"}
COLUMNS = ("task", "probe", "source", "layer", "best")
LEGEND = (
    "percent, in brackets the 95 % interval over the test samples (bootstrap); over: percentage\n"
    "points of the trained encoder, on the same samples"
)


def render_probes(result: Mapping[str, Any]) -> str:
    """The result of ``selfdistill.probe.probe`` as a table per task, in ASCII."""
    blocks = [
        _block(f"{result['modality']}, {name}", task) for name, task in result["tasks"].items()
    ]
    return "\n\n".join([*blocks, LEGEND])


def as_json(result: Mapping[str, Any]) -> str:
    """All that was found."""
    return json.dumps(result, indent=2) + "\n"


def as_csv(result: Mapping[str, Any]) -> str:
    """One row per task, probe, source and layer; ``best`` is 1 for the layer that is chosen on the
    validation part."""
    rows = list(_rows(result))
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _rows(result: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for task, found in result["tasks"].items():
        for probe, by_source in found["probes"].items():
            for source, score in by_source.items():
                for layer in score.get("layers") or [score]:
                    named = (task, probe, source, layer["layer"])
                    measured = {k: layer[k] for k in (measure(layer), "low", "high", "n")}
                    best = int(layer["layer"] == score["layer"])
                    yield dict(zip(COLUMNS, (*named, best), strict=True)) | measured


def measure(score: Mapping[str, Any]) -> str:
    """The name of what a score measures."""
    return ERROR if ERROR in score else ACCURACY


def _block(title: str, task: Mapping[str, Any]) -> str:
    probes = task["probes"]
    sources = [s for s in SOURCES if any(s in by_source for by_source in probes.values())]
    baselines = [source for source in sources if source != "trained"]
    heads = ["trained (best layer)" if source == "trained" else source for source in sources]
    header = ("", *heads, *(f"over {source}" for source in baselines))
    rows = [
        (
            name_of(probe),
            *(_cell(by_source, source) for source in sources),
            *(_over(by_source, source) for source in baselines),
        )
        for probe, by_source in probes.items()
    ]
    lines = [f"{title}: {_sizes(task)}", *aligned([header, *rows])]
    if "raw" in sources and "raw_input" in task:
        lines.append(f"raw: {task['raw_input']}")
    return "\n".join([*lines, *_by_layer(probes)])


def _sizes(task: Mapping[str, Any]) -> str:
    what = f"{task.get('per', 'sample')}s"
    split = f"{task['train_samples']} {what} for training, {task['test_samples']} for the test"
    if "classes" not in task:
        return f"{split}, character error rate"
    classes = task["classes"]
    return f"{split}, {classes} classes, chance {100 / classes:.1f} %"


def name_of(probe: str) -> str:
    """A probe's name in the table."""
    return TITLES.get(probe) or f"kNN, k={probe.rpartition('_')[2]}"


def _cell(by_source: Mapping[str, Any], source: str) -> str:
    score = by_source.get(source)
    if score is None:
        return NONE
    value, low, high = (100 * score[key] for key in (measure(score), "low", "high"))
    shown = f"{value:.1f} [{low:.1f}, {high:.1f}]"
    return f"{shown} ({score['layer']})" if source == "trained" else shown


def _over(by_source: Mapping[str, Any], source: str) -> str:
    found = by_source["trained"].get("over", {}).get(source)
    if found is None:
        return NONE
    points, low, high = (100 * found[key] for key in ("difference", "low", "high"))
    return f"{points:+.1f} [{low:+.1f}, {high:+.1f}]"


def _by_layer(probes: Mapping[str, Any]) -> list[str]:
    """Every layer of the trained encoder, a line per probe."""
    found = {name: by["trained"].get("layers", []) for name, by in probes.items()}
    most = max((len(layers) for layers in found.values()), default=0)
    if most < 2:
        return []
    header: Sequence[str] = ("by layer", *(str(layer) for layer in range(most)))
    rows = [
        (name_of(probe), *(f"{100 * layer[measure(layer)]:.1f}" for layer in layers))
        for probe, layers in found.items()
        if len(layers) == most
    ]
    return aligned([header, *rows])
