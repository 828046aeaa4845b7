"""What a run that is resumed, or that goes back, knows of the steps before."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from accelerate import Accelerator
from launching import fresh_accelerate

from selfdistill.config import RunConfig
from selfdistill.engine.checkpoint_files import Checkpoint
from selfdistill.engine.metrics import Progress
from selfdistill.engine.recovery import Recovery

Make = Callable[[], Recovery]


@pytest.fixture
def make(tiny_config: Callable[..., RunConfig]) -> Iterator[Make]:
    with fresh_accelerate():
        accelerator = Accelerator(cpu=True)
        progress = Progress(10, 0, main=False)
        yield lambda: Recovery(tiny_config("image"), accelerator, None, progress)


def test_a_resumed_run_measures_by_the_losses_before(make: Make, tmp_path: Path) -> None:
    before, after = make(), make()
    before.judge.load_state({"image": [1.0, 2.0]})
    after.load_state(json.loads(json.dumps(before.state())), tmp_path / "step-00000003")
    assert after.judge.state() == {"image": [1.0, 2.0]}


def test_a_run_that_went_back_measures_by_the_losses_up_to_there(make: Make) -> None:
    found = make()
    found.judge.load_state({"image": [1.0, 2.0]})
    state = json.loads(json.dumps(found.state()))
    found.judge.load_state({"image": [1.0, 2.0, 9.0]})
    found.go_back(Checkpoint(2, {}, {}, {"recovery": state}))
    assert found.judge.state() == {"image": [1.0, 2.0]}
