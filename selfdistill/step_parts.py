"""The parts of a training step, named where they run, so that a profiler can tell them apart."""

from contextlib import AbstractContextManager

from torch.profiler import record_function

PREFIX = "step/"
PARTS = (
    "feature_encoder",
    "teacher",
    "student",
    "decoder",
    "loss",
    "figures",
    "backward",
    "optimiser",
    "ema",
)


def as_part(name: str) -> AbstractContextManager[object]:
    """What runs inside belongs to one of ``PARTS``; costs a microsecond without a profiler."""
    assert name in PARTS
    return record_function(PREFIX + name)
