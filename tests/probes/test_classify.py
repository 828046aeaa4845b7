import warnings
from typing import Any

import numpy as np
import pytest

from selfdistill.probes import classify
from selfdistill.probes.axes import PrincipalAxes
from selfdistill.probes.classify import Probes, Score
from selfdistill.probes.features import Features
from selfdistill.probes.splits import group_split, validation_split

CLASSES, WIDTH = 5, 12


def gaussian(rng: np.random.Generator, labels: np.ndarray, distance: float) -> np.ndarray:
    noise = rng.normal(size=(len(labels), WIDTH))
    return (noise + distance * np.eye(CLASSES, WIDTH)[labels]).astype(np.float32)


def sets(
    distances: list[float], train: int = 400, test: int = 1000, seed: int = 0
) -> tuple[Features, Features]:
    """A layer per distance between the classes; 0: the layer knows nothing."""
    rng = np.random.default_rng(seed)
    labels = [np.arange(n) % CLASSES for n in (train, test)]
    made = [Features([gaussian(rng, y, d) for d in distances], y) for y in labels]
    return made[0], made[1]


def knn(probes: Probes, neighbours: int) -> Score:
    return probes.nearest([neighbours])[neighbours]


def test_separable_classes_are_found() -> None:
    probes = Probes(*sets([20.0]))
    for score in (probes.linear(), probes.few_shot(5, 3), knn(probes, 20)):
        assert score.accuracy > 0.99


def test_features_that_know_nothing_are_at_chance() -> None:
    probes = Probes(*sets([0.0]))
    for score in (probes.linear(), probes.few_shot(5, 3), knn(probes, 20)):
        assert score.accuracy == pytest.approx(1 / CLASSES, abs=0.06)


def test_the_layer_that_knows_is_named() -> None:
    probes = Probes(*sets([0.0, 0.0, 4.0, 0.0]))
    for score in (probes.linear(), probes.few_shot(5, 3), knn(probes, 20)):
        assert score.layer == 2
        assert score.accuracy > 0.8


def test_the_layer_is_not_chosen_on_the_test_split() -> None:
    train, test = sets([4.0, 3.0])
    misled = Features([np.zeros_like(test.layers[0]), test.layers[1]], test.labels)
    probes = Probes(train, misled)
    for score in (probes.linear(), probes.few_shot(10, 3), knn(probes, 20)):
        assert score.layer == 0
        assert score.accuracy == pytest.approx(1 / CLASSES)


class Counted:
    """Rows that know how often they were read."""

    def __init__(self, x: np.ndarray) -> None:
        self.x, self.times = x, 0

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: Any) -> np.ndarray:
        self.times += 1
        return self.x[rows]


def test_the_test_split_is_looked_at_once() -> None:
    train, test = sets([1.5])
    layer: Any = Counted(test.layers[0])
    Probes(train, Features([layer], test.labels)).linear()
    assert layer.times == 1


def test_the_test_split_is_scaled_as_that_for_training() -> None:
    """One class alone would lose by its own scale what tells it from the others."""
    train, test = sets([20.0])
    chosen = test.labels == 2
    probes = Probes(train, Features([test.layers[0][chosen]], test.labels[chosen]))
    assert probes.linear().accuracy > 0.99


def test_what_was_chosen_is_fitted_on_all_that_is_for_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fit, sizes = classify.fit_regression, []

    def noting(x: np.ndarray, *rest: Any) -> Any:
        sizes.append(len(x))
        return fit(x, *rest)

    monkeypatch.setattr(classify, "fit_regression", noting)
    Probes(*sets([1.5], train=400)).linear()
    assert sizes[-1] == 400
    assert set(sizes[:-1]) == {320}


def test_linear_probe_is_near_the_best_possible() -> None:
    train, test = sets([2.0], train=2000, test=4000)
    centres = 2 * np.eye(CLASSES, WIDTH)
    distance = ((test.layers[0][:, None] - centres) ** 2).sum(axis=2)
    best = (distance.argmin(axis=1) == test.labels).mean()
    assert Probes(train, test).linear().accuracy == pytest.approx(best, abs=0.02)


def test_linear_probe_reads_directions_of_little_variance() -> None:
    train, test = sets([6.0])
    rng = np.random.default_rng(1)
    turn = np.linalg.qr(rng.normal(size=(2 * WIDTH, 2 * WIDTH)))[0]

    def hidden(features: Features) -> Features:
        loud = 100 * rng.normal(size=(len(features.labels), WIDTH))
        x = np.concatenate([features.layers[0], loud], axis=1) @ turn
        return Features([x.astype(np.float32)], features.labels)

    probes = Probes(hidden(train), hidden(test))
    assert probes.linear().accuracy > 0.95
    assert probes.few_shot(20, 3).accuracy > 0.8


def test_standard_error_is_binomial_and_std_is_over_draws() -> None:
    probes = Probes(*sets([1.5]))
    linear, few_shot = probes.linear(), probes.few_shot(3, 4)
    p = linear.accuracy
    assert linear.standard_error == pytest.approx(np.sqrt(p * (1 - p) / 1000))
    assert linear.std is None
    assert few_shot.std is not None
    assert 0 < few_shot.std < 0.2
    assert few_shot.accuracy < linear.accuracy


def test_few_shot_depends_on_the_seed_alone() -> None:
    train, test = sets([1.5])
    first, again = (Probes(train, test, seed=3).few_shot(3, 4) for _ in range(2))
    assert first == again
    assert Probes(train, test, seed=4).few_shot(3, 4) != first


def test_few_shot_uses_so_many_labels() -> None:
    train, test = sets([1.5])
    probes = Probes(train, test)
    drawn = probes._draw(7, 0)
    assert np.bincount(train.labels[drawn]).tolist() == [7] * CLASSES
    assert not set(drawn) & set(validation_split(train.labels, 0)[1])
    assert set(drawn) != set(probes._draw(7, 1))


def test_knn_votes_by_cosine_and_weight() -> None:
    # one very near sample of class 0 against two of class 1 some way off
    angles = np.deg2rad([0, 30, 30, 180, 180, 180])
    x = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    train = Features([np.repeat(x, 10, axis=0)], np.repeat([0, 1, 1, 1, 0, 0], 10))
    test = Features([np.array([[50.0, 0.0], [0.0, 50.0]], dtype=np.float32)], np.array([0, 1]))
    # at 0 degrees: 10 exp(0) for class 0 over 20 exp((cos 30 - 1) / 0.07) = 20 * 0.148
    assert knn(Probes(train, test), 30).accuracy == 1
    unlike = Features(test.layers, np.array([1, 0]))
    assert knn(Probes(train, unlike), 30).accuracy == 0


def test_more_neighbours_than_samples_is_all_of_them() -> None:
    train, test = sets([20.0], train=50)
    assert knn(Probes(train, test), 10_000).accuracy == knn(Probes(train, test), 50).accuracy


def test_constant_features_are_no_error() -> None:
    train, test = sets([4.0])
    flat = [Features([np.full_like(f.layers[0], 0.3)], f.labels) for f in (train, test)]
    probes = Probes(*flat)
    for score in (probes.linear(), probes.few_shot(5, 2), knn(probes, 20)):
        assert score.accuracy == pytest.approx(1 / CLASSES, abs=0.01)


def test_labels_need_not_be_consecutive() -> None:
    train, test = (Features(f.layers, 10 * f.labels + 3) for f in sets([20.0]))
    probes = Probes(train, test)
    assert probes.linear().accuracy == knn(probes, 20).accuracy == 1


def test_no_warning_and_no_global_chance() -> None:
    np.random.seed(5)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        probes = Probes(*sets([1.0, 2.0]))
        probes.linear(), probes.few_shot(5, 2), knn(probes, 20)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_validation_split_is_stratified() -> None:
    labels = np.repeat([0, 1, 2, 3], [100, 10, 2, 1])
    fit, held = validation_split(labels, seed=0)
    assert sorted([*fit, *held]) == list(range(len(labels)))
    assert np.bincount(labels[held], minlength=4).tolist() == [20, 2, 1, 0]
    assert validation_split(labels, seed=1)[1].tolist() != held.tolist()


def test_axes_whiten_or_leave_standardised() -> None:
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(500, 6)) @ rng.normal(size=(6, 6)) * 7 + 3).astype(np.float32)
    x = np.concatenate([x, x[:, :2]], axis=1)  # two columns that add no direction
    axes = PrincipalAxes(x)
    along = axes.coordinates(x)
    assert along.shape == (500, 6)
    white = along * axes.scale(1e-9)
    np.testing.assert_allclose(np.cov(white.T, bias=True), np.eye(6), atol=1e-3)
    standardised = (x - x.mean(0)) / x.std(0)
    plain = along * axes.scale(1e9)
    np.testing.assert_allclose(plain @ plain.T, standardised @ standardised.T, atol=1e-2)


def test_rows_of_one_input_stay_together() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), 10)
    fit, held = group_split(groups, 0)
    assert sorted([*fit, *held]) == list(range(600))
    assert len(set(groups[held])) == 12
    assert not set(groups[fit]) & set(groups[held])
    # all rows of an input are alike, so that there are no more than 60 to be sure of
    labels = groups % CLASSES
    train, test = (
        Features([gaussian(rng, labels[::10], 1.5).repeat(10, axis=0)], labels, groups=groups)
        for _ in range(2)
    )
    alone = Features(test.layers, labels)
    together, apart = (knn(Probes(train, t), 5) for t in (test, alone))
    assert together.accuracy == apart.accuracy
    width = [high - low for low, high in (together.interval, apart.interval)]
    assert width[0] > 2 * width[1]
