"""What a bench says of where the time goes."""

from dataclasses import replace

import pytest

from selfdistill.bench.trace import LABELS
from selfdistill.bench.verdict import DATA_WAIT, Step, verdict


def step(use: float = 0.2, half_speedup: float = 1.0, workers: int = 2, **shares: float) -> Step:
    every = dict.fromkeys((DATA_WAIT, *LABELS), 0.0)
    return Step(every | shares, use, half_speedup, on_gpu=True, workers=workers, cores=4)


def test_a_cpu_is_not_told_to_compile() -> None:
    said = verdict(replace(step(), on_gpu=False))
    assert said.endswith("at 20% of their best rate: try a larger train.batch_size")


def test_half_precision_is_proposed_where_the_machine_multiplies_faster_in_it() -> None:
    """Some CPUs do, and some are slower."""
    bound = replace(step(use=0.6, half_speedup=5.25), on_gpu=False)
    assert verdict(bound).endswith("try train.precision=bf16 (products are 5.2 times as fast)")
    assert "bf16" in verdict(replace(bound, use=0.3))
    assert "bf16" not in verdict(replace(bound, use=0.05))  # there is little to gain
    assert "bf16" not in verdict(replace(bound, half_speedup=0.4))
    assert "bf16" not in verdict(replace(bound, use=0.3, half_speedup=1.1))


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (step(**{DATA_WAIT: 0.3}), "waits for data: raise data.workers (2; there are 4 cores)"),
        (step(workers=4, **{DATA_WAIT: 0.3}), "waits for data: there are no cores for more"),
        (step(idle=0.4), "the GPU waits for the host"),
        (step(communication=0.4), "waits for other processes"),
        (step(optimiser=0.2, ema=0.1), "bound by the optimiser and the teacher's update"),
        (step(use=0.6), "bound by matrix products, at 60% of their best rate: the machine does"),
        (step(use=0.6, half_speedup=9.0), "rate: try train.precision=bf16"),
        (step(), "bound by many small operations; matrix products are at 20%"),
        (step(idle=0.3, **{DATA_WAIT: 0.5}), "waits for data"),  # the larger of two
    ],
)
def test_what_bounds_a_step_is_named_with_what_to_try(found: Step, said: str) -> None:
    assert said in verdict(found)
