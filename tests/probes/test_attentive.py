import numpy as np
import pytest

from selfdistill.probes import tokens
from selfdistill.probes.attentive import attentive
from selfdistill.probes.classify import Probes
from selfdistill.probes.features import Features
from selfdistill.probes.tokens import LayerTokens

WIDTH, CLASSES = 8, 3


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "STEPS", 150)


def marked(count: int, seed: int) -> tuple[Features, Features]:
    """One marked token tells the class; the others tell other classes, louder together.

    Returns:
        The tokens and their means. Layer 0 is noise.
    """
    rng = np.random.default_rng(seed)
    labels = rng.integers(CLASSES, size=count)
    lengths = rng.integers(12, 20, count)
    samples = []
    for label, length in zip(labels, lengths, strict=True):
        x = 0.1 * rng.normal(size=(length, WIDTH))
        x[np.arange(length), rng.integers(CLASSES, size=length)] += 1
        place = rng.integers(length)
        x[place, :CLASSES] = np.eye(CLASSES)[label]
        x[place, WIDTH - 1] += 1
        samples.append(x.astype(np.float16))
    told = np.concatenate(samples)
    noise = rng.normal(size=told.shape).astype(np.float16)
    tokens = Features([noise, told], labels, np.arange(count), lengths)
    means = np.stack([x.mean(axis=0) for x in samples]).astype(np.float32)
    return tokens, Features([means], labels)


def test_it_learns_what_a_mean_does_not_tell() -> None:
    (train, train_means), (test, test_means) = marked(400, 1), marked(300, 2)
    by_mean = Probes(train_means, test_means).linear().accuracy
    found = attentive(train, test)
    assert by_mean < 0.65
    assert found.accuracy > 0.9
    assert found.layer == 1
    assert [score.layer for score in found.layers] == [0, 1]
    assert found.layers[0].accuracy < 0.5
    assert attentive(train, test) == found


def test_tokens_are_those_of_their_sample() -> None:
    tokens, _ = marked(30, 3)
    layer = LayerTokens(tokens, 1)
    chosen = np.array([7, 0, 29])
    x, padding = layer.batch(chosen)
    mean, std = layer.moments
    ends = np.cumsum(tokens.lengths)
    for row, hidden, sample in zip(x.numpy(), padding.numpy(), chosen, strict=True):
        length = tokens.lengths[sample]
        expected = tokens.layers[1][ends[sample] - length : ends[sample]]
        np.testing.assert_allclose(row[:length] * std + mean, expected, atol=1e-3)
        assert hidden.sum() == len(row) - length
        assert (row[length:] == 0).all()
    pooled = np.concatenate([layer.batch(np.array([i]))[0][0] for i in range(30)])
    np.testing.assert_allclose(pooled.mean(axis=0), 0, atol=1e-3)
    np.testing.assert_allclose(pooled.std(axis=0), 1, atol=1e-3)
