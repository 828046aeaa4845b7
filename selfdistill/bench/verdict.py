"""What bounds a step, in words, and what to try."""

from collections.abc import Mapping
from dataclasses import dataclass

from selfdistill.bench.trace import COMMUNICATION, IDLE

DATA_WAIT = "data wait"

MUCH = {DATA_WAIT: 0.1, COMMUNICATION: 0.15, IDLE: 0.2, "update": 0.25}
"""Shares of a step from which each counts as what bounds it."""
UPDATE = ("optimiser", "ema")
"""The parts whose time does not grow with the batch."""
WORTH = 1.2
"""How many times as fast a step must become by products in bf16, so that it is worth a try."""
GOOD_USE = 0.5
"""Of the rate of large matrix products, from which these are what bounds the step."""


@dataclass(frozen=True)
class Step:
    """What is known of a step.

    Attributes:
        shares: of its time, by part.
        use: the model's operations over what the device would multiply in that time.
        half_speedup: how many times as fast the device multiplies in bf16 as the run does.
        on_gpu: whether it runs on a GPU.
        workers: ``data.workers``.
        cores: that the process may use.
    """

    shares: Mapping[str, float]
    use: float
    half_speedup: float
    on_gpu: bool
    workers: int
    cores: int


def verdict(step: Step) -> str:
    """One line."""
    found = {
        DATA_WAIT: step.shares[DATA_WAIT],
        COMMUNICATION: step.shares[COMMUNICATION],
        IDLE: step.shares[IDLE],
        "update": sum(step.shares[part] for part in UPDATE),
    }
    much = {what: share for what, share in found.items() if share >= MUCH[what]}
    if much:
        what = max(much, key=much.__getitem__)
        return f"{_of_much(what, step)} ({much[what]:.0%} of a step)"
    if step.use >= GOOD_USE:
        return f"bound by matrix products, at {step.use:.0%} of their best rate: {_faster(step)}"
    return (
        f"bound by many small operations; matrix products are at {step.use:.0%} of their best "
        f"rate: try {_larger(step)}"
    )


def _of_much(what: str, step: Step) -> str:
    if what == DATA_WAIT:
        if step.workers < step.cores:
            more = f"raise data.workers ({step.workers}; there are {step.cores} cores)"
        else:
            more = "there are no cores for more data.workers; make reading and decoding cheaper"
        return f"waits for data: {more}, and see selfdistill bench data CONFIG"
    if what == COMMUNICATION:
        return (
            "waits for other processes: give each more to do (train.batch_size, train.accumulate), "
            "or use fewer"
        )
    if what == IDLE:
        return (
            "the GPU waits for the host, which launches too many small operations: raise "
            "train.batch_size, or set train.compile=true"
        )
    return (
        "bound by the optimiser and the teacher's update, which take as long for any batch: raise "
        "train.batch_size"
    )


def _faster(step: Step) -> str:
    if _half_is_worth(step):
        return f"try {_half(step)}"
    return (
        "the machine does what it can; what is left is less work, by strategy=visible or a "
        "smaller model"
    )


def _larger(step: Step) -> str:
    tried = ["a larger train.batch_size"]
    if step.on_gpu:  # a CPU gains nothing from compiled blocks
        tried.append("train.compile=true")
    if _half_is_worth(step):
        tried.append(_half(step))
    return ", ".join(tried)


def _half_is_worth(step: Step) -> bool:
    return step.use / step.half_speedup + 1 - step.use <= 1 / WORTH


def _half(step: Step) -> str:
    return f"train.precision=bf16 (products are {step.half_speedup:.1f} times as fast)"
