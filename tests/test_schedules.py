"""The teacher's decay against values recorded from the originals, to the last bit."""

import pytest

from selfdistill.config import TeacherConfig
from selfdistill.schedules import ema_decay

# fairseq, commit 3d262bb25690e4eb2e7d3c1309b1e9c406ca4b99: decay of the update after optimiser
# steps 1 to 10, from 0.9 to 0.99 over 10 steps
FAIRSEQ = [
    "0x1.d16872b020c4ap-1",
    "0x1.d604189374bc7p-1",
    "0x1.da9fbe76c8b44p-1",
    "0x1.df3b645a1cac1p-1",
    "0x1.e3d70a3d70a3ep-1",
    "0x1.e872b020c49bap-1",
    "0x1.ed0e560418937p-1",
    "0x1.f1a9fbe76c8b4p-1",
    "0x1.f645a1cac0831p-1",
    "0x1.fae147ae147aep-1",
]
# facebookresearch/data2vec_vision: from 0.9 to 0.99 over 3 steps, epochs of 5 steps
VISION = [
    *("0x1.ccccccccccccdp-1", "0x1.dc28f5c28f5c3p-1", "0x1.eb851eb851eb8p-1"),
    *("0x1.eb851eb851eb8p-1", "0x1.eb851eb851eb8p-1"),
    *["0x1.fae147ae147aep-1"] * 5,
]


def test_ramp_equals_the_recorded_one() -> None:
    teacher = TeacherConfig(ema_decay=0.9, ema_end_decay=0.99, ema_anneal_end_step=10)
    assert [ema_decay(step, teacher).hex() for step in range(1, 11)] == FAIRSEQ
    assert ema_decay(11, teacher) == 0.99


@pytest.mark.parametrize(
    ("step", "recorded"),
    [
        (0, 0.999),
        (1, 0.99900003),
        (100, 0.999003),
        (15000, 0.99945),
        (29999, 0.99989997),
        (30000, 0.9999),
        (400000, 0.9999),
    ],
)
def test_published_ramp(step: int, recorded: float) -> None:
    teacher = TeacherConfig(ema_decay=0.999, ema_end_decay=0.9999, ema_anneal_end_step=30000)
    assert ema_decay(step, teacher) == recorded


def test_ramp_by_epochs_equals_the_recorded_one() -> None:
    teacher = TeacherConfig(ema_decay=0.9, ema_end_decay=0.99, ema_anneal_end_step=3)
    assert [ema_decay(step, teacher, epoch_steps=5).hex() for step in range(1, 11)] == VISION


def test_ramp_that_ends_with_an_epoch() -> None:
    teacher = TeacherConfig(ema_decay=0.5, ema_end_decay=1.0, ema_anneal_end_step=4)
    decays = [ema_decay(step, teacher, epoch_steps=2) for step in range(1, 7)]
    assert decays == [0.5, 0.625, 0.75, 0.875, 1.0, 1.0]


@pytest.mark.parametrize("epoch_steps", [0, 5])
def test_no_ramp(epoch_steps: int) -> None:
    constant = TeacherConfig(ema_decay=0.9998, ema_end_decay=0.9998, ema_anneal_end_step=7)
    assert {ema_decay(step, constant, epoch_steps) for step in range(1, 20)} == {0.9998}
    at_once = TeacherConfig(ema_decay=0.9, ema_end_decay=0.99, ema_anneal_end_step=0)
    assert {ema_decay(step, at_once, epoch_steps) for step in range(1, 20)} == {0.99}
