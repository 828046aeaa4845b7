"""Maps of samples: their points, classes and legend."""

import numpy as np
import pytest

from selfdistill.pictures.map import Planes, draw_map
from selfdistill.pictures.scene import mixed
from selfdistill.probes.features import UNLABELLED


def planes(labels: np.ndarray, apart: float, seed: int = 0) -> Planes:
    """Of samples whose classes lie ``apart``."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(labels.max() + 2, 12)) * apart
    return Planes.of(centres[labels] + rng.normal(size=(len(labels), 12)), seed)


def test_classes_that_lie_apart_are_apart_in_both_maps_and_named() -> None:
    labels = np.arange(120) % 3
    found = {"untrained": planes(labels, 0.0), "trained": planes(labels, 20.0)}
    for points in (found["trained"].principal, found["trained"].neighbourhoods):
        centres = np.stack([points[labels == name].mean(axis=0) for name in range(3)])
        nearest = np.linalg.norm(points[:, None] - centres, axis=2).argmin(axis=1)
        assert (nearest == labels).mean() > 0.95
    figure = draw_map(found, labels, "shape", [])
    named = [[text.get_text() for text in axes.texts] for axes in figure.axes]
    assert named == [[], [], ["0", "1", "2"], ["0", "1", "2"]]
    assert figure.texts[0].get_text() == "Map of samples by shape"


def test_a_map_is_the_same_each_time() -> None:
    x = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    np.testing.assert_array_equal(Planes.of(x, 1).neighbourhoods, Planes.of(x, 1).neighbourhoods)


def test_the_largest_26_classes_are_told_apart() -> None:
    labels = np.concatenate([np.arange(30), np.arange(26)])
    found = {name: planes(labels, 1.0) for name in ("untrained", "trained")}
    figure = draw_map(found, labels, "letter", [])
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [str(n) for n in range(26)]
    looks = {(h.get_color(), h.get_marker()) for h in legend.get_lines()}
    assert len(looks) == 26
    assert any(
        "The 4 of other classes or of none are grey" in text.get_text() for text in figure.texts
    )
    grey = figure.axes[0].collections[0]
    assert len(grey.get_offsets()) == 4


def test_without_labels_there_is_no_legend() -> None:
    labels = np.full(20, UNLABELLED)
    figure = draw_map({n: planes(labels, 1.0) for n in ("untrained", "trained")}, labels, "", [])
    assert not figure.legends
    assert len(figure.axes[0].collections[0].get_offsets()) == 20
    assert figure.texts[0].get_text() == "Map of samples"


@pytest.mark.parametrize("count", [1, 2, 9, 40])
def test_a_collapsed_encoder_can_be_drawn(count: int) -> None:
    found = Planes.of(np.ones((count, 5), dtype=np.float32), 0)
    labels = np.arange(count) % 2
    assert found.neighbourhoods.shape == (count, 2)
    draw_map({"untrained": found, "trained": found}, labels, "label", []).draw_without_rendering()


def test_samples_come_one_of_each_class_in_turn() -> None:
    labels = np.array([0] * 20 + [1] * 3 + [2] * 5)
    order = mixed(labels, seed=0)
    assert sorted(order.tolist()) == list(range(28))
    assert all({*labels[order[i : i + 3]]} == {0, 1, 2} for i in (0, 3, 6))
    assert {*labels[order[13:]]} == {0}
    assert order[:3].tolist() != [0, 20, 23]
