"""Where a trace says that the time went."""

from typing import Any

import pytest

from selfdistill.bench.trace import COMMUNICATION, IDLE, REST, WINDOW, shares


def event(name: str, start: float, end: float, **more: Any) -> dict[str, Any]:
    return {"ph": "X", "name": name, "ts": start, "dur": end - start, "cat": "cpu_op", **more}


def kernel(start: float, end: float, launched: float, name: str = "gemm") -> list[dict[str, Any]]:
    """A kernel on the GPU and its launch on the host."""
    number = int(1000 * launched)
    return [
        event(name, start, end, cat="kernel", args={"correlation": number}),
        event("cudaLaunchKernel", launched, launched + 0.1, args={"correlation": number}),
    ]


def positive(found: dict[str, float]) -> dict[str, float]:
    assert sum(found.values()) == pytest.approx(1)
    return {part: share for part, share in found.items() if share}


def test_on_the_host_a_moment_belongs_to_the_innermost_part() -> None:
    events = [
        event(WINDOW, 100, 200),
        event("step/teacher", 90, 110),  # begins before the window
        event("step/student", 110, 150),
        event("step/decoder", 120, 130),  # inside
        event("step/backward", 150, 190),
    ]
    assert positive(shares(events, on_gpu=False)) == pytest.approx(
        {"teacher": 0.1, "student": 0.3, "decoder": 0.1, "backward": 0.4, REST: 0.1}
    )


def test_communication_counts_where_nothing_is_computed_meanwhile() -> None:
    events = [
        event(WINDOW, 0, 100),
        event("step/backward", 0, 80),
        event("gloo:all_reduce", 40, 100),
        event("aten::mm", 0, 70),
    ]
    assert positive(shares(events, on_gpu=False)) == pytest.approx(
        {"backward": 0.7, COMMUNICATION: 0.3}
    )


def test_on_a_gpu_a_kernel_belongs_to_the_part_that_launched_it() -> None:
    events = [
        event(WINDOW, 0, 100),
        event("step/student", 0, 10),
        event("step/backward", 10, 20),
        *kernel(20, 50, launched=5),
        *kernel(50, 90, launched=15),
        *kernel(60, 95, launched=16, name="ncclDevKernel_AllReduce"),
    ]
    assert positive(shares(events, on_gpu=True)) == pytest.approx(
        {"student": 0.3, "backward": 0.4, COMMUNICATION: 0.05, IDLE: 0.25}
    )


def test_a_gpu_whose_kernels_cannot_be_seen_is_not_idle() -> None:
    events = [event(WINDOW, 0, 100), event("step/student", 0, 10)]
    assert positive(shares(events, on_gpu=True)) == {REST: 1}
