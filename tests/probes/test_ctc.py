import numpy as np
import pytest

from selfdistill.errors import UserError
from selfdistill.probes import ctc, tokens
from selfdistill.probes.ctc import edits, frames_needed, spell
from selfdistill.probes.features import Features

LETTERS = "abc "


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "STEPS", 300)
    monkeypatch.setattr(ctc, "MAX_PASSES", 20)


def spoken(count: int, seed: int) -> tuple[Features, list[str]]:
    """Each letter is spoken for some frames, silence between; layer 1 hears it, layer 0 noise."""
    rng = np.random.default_rng(seed)
    texts, samples = [], []
    for _ in range(count):
        text = "".join(rng.choice(list(LETTERS), rng.integers(2, 6)))
        frames = []
        for letter in text:
            number = LETTERS.index(letter)
            frames += [number] * rng.integers(1, 4) + [len(LETTERS)] * rng.integers(1, 3)
        x = np.eye(len(LETTERS) + 1, 6)[frames]
        texts.append(text)
        samples.append((3 * x + 0.3 * rng.normal(size=x.shape)).astype(np.float16))
    heard = np.concatenate(samples)
    lengths = np.array([len(x) for x in samples])
    noise = rng.normal(size=heard.shape).astype(np.float16)
    labels = np.zeros(count, dtype=np.int64)
    return Features([noise, heard], labels, np.arange(count), lengths), texts


def test_it_learns_an_alignment() -> None:
    (train, texts), (test, expected) = spoken(300, 1), spoken(100, 2)
    found = spell(train, texts, test, expected, seed=0)
    assert found.layer == 1
    assert found.rate < 0.02
    assert [score.layer for score in found.layers] == [0, 1]
    assert found.layers[0].rate > 0.5
    low, high = found.layers[0].interval
    assert low < found.layers[0].rate < high
    assert found.characters.tolist() == [len(text) for text in expected]


def test_what_cannot_be_aligned_is_left_out_of_the_training() -> None:
    (train, texts), (test, expected) = spoken(300, 1), spoken(50, 2)
    found = spell(
        train, ["a" * 200 if i % 10 == 0 else t for i, t in enumerate(texts)], test, expected, 0
    )
    assert found.rate < 0.05


def test_a_single_sample_is_refused() -> None:
    """Rate, passes and layer would be chosen by nothing."""
    (train, texts), (test, expected) = spoken(1, 1), spoken(5, 2)
    with pytest.raises(UserError, match="--train: a single sample for training leaves none"):
        spell(train, texts, test, expected, named="--train")


def test_letters_that_training_has_not_are_errors() -> None:
    (train, texts), (test, expected) = spoken(40, 1), spoken(50, 2)
    found = spell(train, texts, test, ["z" + text for text in expected], 0)
    assert (found.errors >= 1).all()


@pytest.mark.parametrize(
    ("told", "expected", "count"),
    [("", "", 0), ("", "abc", 3), ("abc", "", 3), ("kitten", "sitting", 3), ("ab", "ba", 2)],
)
def test_edits(told: str, expected: str, count: int) -> None:
    assert edits(told, expected) == count


def test_equal_neighbours_need_a_frame_more() -> None:
    assert [frames_needed(text) for text in ("", "abc", "hello", "aaa")] == [0, 3, 6, 5]
