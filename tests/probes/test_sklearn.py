"""The probes beside scikit-learn on the same features."""

from collections.abc import Callable

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from selfdistill.probes import classify, neighbours, regression, splits
from selfdistill.probes.classify import Probes, Score
from selfdistill.probes.features import Features
from selfdistill.probes.neighbours import TEMPERATURE, vote

CLASSES, WIDTH = 6, 16


def sets(train: int, test: int, seed: int = 0) -> tuple[Features, Features]:
    """Classes that overlap, in directions of different loudness."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(CLASSES, WIDTH))
    turn = np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0] * np.geomspace(4, 0.25, WIDTH)[:, None]
    made = []
    for count in (train, test):
        labels = rng.integers(CLASSES, size=count)
        x = (rng.normal(size=(count, WIDTH)) + 0.8 * centres[labels]) @ turn + 1
        made.append(Features([x.astype(np.float32)], labels))
    return made[0], made[1]


@pytest.mark.parametrize("block", [64, 16_384])
def test_nearest_neighbours_are_scikit_learns(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "TRAIN_BLOCK", block)
    monkeypatch.setattr(neighbours, "TEST_BLOCK", block)
    train, test = sets(700, 300)
    x, tested = train.layers[0], test.layers[0]
    found = vote(x, train.labels, tested, [1, 5, 20, 100])
    assert list(found) == [1, 5, 20, 100]
    for k, told in found.items():
        theirs = KNeighborsClassifier(
            k, metric="cosine", weights=lambda distance: np.exp(-distance / TEMPERATURE)
        ).fit(x, train.labels)
        np.testing.assert_array_equal(told, theirs.predict(tested))


def test_of_equally_near_ones_the_first_vote() -> None:
    x = np.tile(np.eye(2, dtype=np.float32), (40, 1))
    labels = np.array([0] * 6 + [1] * 74)
    told = vote(x, labels, np.array([[3.0, 0.0]]), [3, 5, 7])
    assert {k: found.tolist() for k, found in told.items()} == {3: [0], 5: [0], 7: [1]}


def test_several_numbers_of_neighbours_are_each_number() -> None:
    train, test = sets(400, 200)
    probes = Probes(train, test)
    for k, score in probes.nearest([1, 7, 30]).items():
        assert score == probes.nearest([k])[k]


def pipeline_accuracy(train: Features, test: Features) -> float:
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    search = GridSearchCV(pipeline, {"logisticregression__C": [1e-3, 1e-2, 0.1, 1, 10]}, cv=2)
    search.fit(train.layers[0], train.labels)
    return float((search.predict(test.layers[0]) == test.labels).mean())


def test_the_linear_probe_is_within_half_a_point_of_a_plain_pipeline() -> None:
    train, test = sets(3000, 4000)
    expected = pipeline_accuracy(train, test)
    assert 0.5 < expected < 0.95
    assert Probes(train, test).linear().accuracy == pytest.approx(expected, abs=0.005)


def test_so_is_that_of_large_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splits, "CHOICE_SAMPLES", 4000)
    monkeypatch.setattr(classify, "DESCENT_FROM", 5000)
    monkeypatch.setattr(classify, "BLOCK", 500)
    train, test = sets(6000, 4000)
    called = []
    plain = regression.fit_by_descent
    monkeypatch.setattr(
        classify, "fit_by_descent", lambda *given: (called.append(1), plain(*given))[1]
    )
    found = Probes(train, test).linear().accuracy
    assert called == [1]
    assert found == pytest.approx(pipeline_accuracy(train, test), abs=0.005)


@pytest.mark.parametrize("c", [1e-4, 1e-2, 1.0])
def test_descent_comes_to_the_same_optimum(c: float) -> None:
    train, test = sets(1500, 1000)
    x, tested = ((f.layers[0] - 1) / 2 for f in (train, test))
    expected = regression.fit_regression(x, train.labels, c)
    whitening = (1 / x.std(axis=0)).astype(np.float32)
    found = regression.fit_by_descent(x.__getitem__, train.labels, c, whitening, 0)
    told = [model.predict(tested) for model in (expected, found)]
    assert (told[0] == told[1]).mean() > 0.98


def test_descent_does_without_axes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selfdistill.probes.axes.MAX_WIDTH", WIDTH - 1)
    train, test = sets(3000, 4000)
    expected = Probes(train, test).linear().accuracy
    monkeypatch.setattr(classify, "DESCENT_FROM", 2000)
    assert Probes(train, test).linear().accuracy == pytest.approx(expected, abs=0.01)


def test_choices_are_made_on_some_of_each_class() -> None:
    labels = np.repeat([0, 1, 2], [60_000, 30_000, 30])
    chosen = splits.choice_samples(labels, 0)
    assert np.bincount(labels[chosen]).tolist() == [13329, 6664, 25]
    assert (np.diff(chosen) > 0).all()


def test_every_layer_is_tested_where_that_is_asked_for() -> None:
    train, test = sets(400, 300)
    noise = np.random.default_rng(0)
    blind = [noise.normal(size=f.layers[0].shape).astype(np.float32) for f in (train, test)]
    both = [Features([x, f.layers[0]], f.labels) for x, f in zip(blind, (train, test), strict=True)]
    probes, light = Probes(*both, every_layer=True), Probes(*both)
    asked: list[Callable[[Probes], Score]] = [
        Probes.linear,
        lambda probes: probes.nearest([5])[5],
        lambda probes: probes.few_shot(5, 2),
    ]
    for ask in asked:
        found, alone = ask(probes), ask(light)
        assert [score.layer for score in found.layers] == [0, 1]
        assert found.layer == 1
        assert found.layers[1] == alone
        assert found.accuracy == alone.accuracy > found.layers[0].accuracy + 0.1
        low, high = found.interval
        assert low < found.accuracy < high
        assert len(found.right) == 300
