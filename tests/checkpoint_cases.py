"""A checkpoint to be written and read again."""

import torch

from selfdistill.engine.checkpoint_files import Checkpoint

FILES = [
    "model.safetensors",
    "optimizer.safetensors",
    "state.json",
    "interval.safetensors",
    "manifest.json",
]


def example(step: int, size: int = 4) -> Checkpoint:
    return Checkpoint(
        step,
        model={"weight": torch.arange(size).float() + step, "index": torch.tensor([step, 2])},
        optimizer={"weight/step": torch.tensor(float(step))},
        state={"seed": 3, "loss": [1.5, None], "step": step},
        interval={"all processes": torch.tensor([step, 2.5], dtype=torch.float64)},
    )


def assert_equal(found: Checkpoint, wanted: Checkpoint) -> None:
    assert (found.step, found.state) == (wanted.step, wanted.state)
    for part in ("model", "optimizer", "interval"):
        ours, theirs = getattr(found, part), getattr(wanted, part)
        assert ours.keys() == theirs.keys()
        for name in ours:
            assert ours[name].dtype == theirs[name].dtype
            assert torch.equal(ours[name], theirs[name])
