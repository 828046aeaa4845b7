"""What a profiler's trace says of where the time of steps goes.

A trace is the Chrome format that torch writes: events with a start and a duration in microseconds.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from selfdistill.step_parts import PARTS, PREFIX

WINDOW = "bench/steps"
"""The annotation around the steps that count."""
COMMUNICATION, IDLE, REST = "communication", "idle", "rest"
LABELS = (*PARTS, COMMUNICATION, IDLE, REST)
COLLECTIVE = re.compile(r"nccl|gloo|c10d", re.IGNORECASE)
ON_GPU = ("kernel", "gpu_memcpy", "gpu_memset")

Event = Mapping[str, Any]
Span = tuple[float, float]
"""Start and end."""


def shares(events: Iterable[Event], on_gpu: bool) -> dict[str, float]:
    """The shares of the window's time, by ``LABELS``; they add up to 1.

    Each moment counts once. On the CPU it belongs to the part that is running, to the innermost one
    where parts are nested, and to the communication where a collective is under way and nothing is
    computed meanwhile. On a GPU it belongs to the part whose kernel is running: the one that the
    host was in when it launched it, from whatever thread, because the backward pass has threads of
    its own and the host runs ahead. A moment without kernels is communication, or idle; but where
    the driver lets nobody see any, all that can be said of the time is that it is the rest.

    Args:
        events: ``traceEvents``.
        on_gpu: whether the device's time counts, or the host's.
    """
    complete = [event for event in events if event.get("ph") == "X"]
    (window,) = (_span(e) for e in complete if e["name"] == WINDOW and not _on_gpu(e))
    parts = sorted(
        (*_span(e), LABELS.index(e["name"].removeprefix(PREFIX)))
        for e in complete
        if e["name"].startswith(PREFIX) and not _on_gpu(e)
    )
    if not on_gpu:
        return _of_host(complete, window, parts)
    return _of_gpu(complete, window, parts)


def _span(event: Event) -> Span:
    return float(event["ts"]), float(event["ts"]) + float(event.get("dur", 0))


def _on_gpu(event: Event) -> bool:
    return event.get("cat") in (*ON_GPU, "gpu_user_annotation")


def _of_host(
    events: Sequence[Event], window: Span, parts: Sequence[tuple[float, float, int]]
) -> dict[str, float]:
    collectives = [_span(e) for e in events if COLLECTIVE.search(e["name"])]
    computing = [_span(e) for e in events if e["name"].startswith("aten::")] if collectives else []
    edges = _edges(window, [*((a, b) for a, b, _ in parts), *collectives, *computing])
    label = np.full(len(edges) - 1, LABELS.index(REST))
    for start, end, number in parts:  # those that begin later are inside
        _paint(label, edges, (start, end), number)
    waiting = _covered(edges, collectives) & ~_covered(edges, computing)
    label[waiting] = LABELS.index(COMMUNICATION)
    return _summed(label, edges)


def _of_gpu(
    events: Sequence[Event], window: Span, parts: Sequence[tuple[float, float, int]]
) -> dict[str, float]:
    kernels = [e for e in events if e.get("cat") in ON_GPU]
    launched = {
        e["args"]["correlation"]: float(e["ts"])
        for e in events
        if not _on_gpu(e) and "correlation" in e.get("args", {})
    }
    spans = [_span(e) for e in kernels]
    edges = _edges(window, spans)
    label = np.full(len(edges) - 1, LABELS.index(IDLE if kernels else REST))
    computing = []
    for kernel, span in zip(kernels, spans, strict=True):
        if COLLECTIVE.search(kernel["name"]):
            _paint(label, edges, span, LABELS.index(COMMUNICATION))
            continue
        when = launched.get(kernel.get("args", {}).get("correlation"))
        computing.append((span, _part_at(parts, when)))
    for span, number in computing:
        _paint(label, edges, span, number)
    return _summed(label, edges)


def _part_at(parts: Sequence[tuple[float, float, int]], when: float | None) -> int:
    if when is not None:
        for start, end, number in reversed(parts):
            if start <= when < end:
                return number
    return LABELS.index(REST)


def _edges(window: Span, spans: Iterable[Span]) -> np.ndarray:
    """All times inside the window at which something begins or ends."""
    every = np.array([*window, *(edge for span in spans for edge in span)])
    return np.unique(every.clip(*window))


def _paint(label: np.ndarray, edges: np.ndarray, span: Span, number: int) -> None:
    first, last = np.searchsorted(edges, span)
    label[first:last] = number


def _covered(edges: np.ndarray, spans: Sequence[Span]) -> np.ndarray:
    """bool, of the times between edges: whether any of the spans is there."""
    first, last = np.searchsorted(edges, np.array(spans).reshape(-1, 2).T)
    begun = np.bincount(first, minlength=len(edges) + 1)
    ended = np.bincount(last, minlength=len(edges) + 1)
    return (begun - ended).cumsum()[: len(edges) - 1] > 0


def _summed(label: np.ndarray, edges: np.ndarray) -> dict[str, float]:
    summed = np.bincount(label, np.diff(edges), len(LABELS)) / (edges[-1] - edges[0])
    return dict(zip(LABELS, summed.tolist(), strict=True))
