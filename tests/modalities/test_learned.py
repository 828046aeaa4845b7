"""What is drawn of features, and where: by each modality on features that are known."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tokenizers
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from selfdistill.config import RunConfig
from selfdistill.modalities.audio.learned import AudioFeatures
from selfdistill.modalities.audio.picture import frame_start
from selfdistill.modalities.image.learned import ImageFeatures
from selfdistill.modalities.learned import Look, as_colours, directions, principal, sheet
from selfdistill.modalities.text.learned import TextFeatures

Config = Callable[..., RunConfig]
ORIGIN = ["line one", "line two"]


def look(number: int, example: np.ndarray, trained: np.ndarray, label: int | None = None) -> Look:
    noise = np.random.default_rng(number).normal(size=trained.shape).astype(np.float32)
    tokens = {"untrained": noise, "trained": trained.astype(np.float32)}
    return Look(f"s{number}", label, example, tokens)


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.texts]


def test_principal_components_are_those_of_a_singular_value_decomposition() -> None:
    rng = np.random.default_rng(0)
    x = rng.gamma(1.0, size=(50, 6)) * [5, 3, 2, 1, 0.5, 0.1]
    found, shares = principal(x, 3)
    left, values, _ = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(np.abs(found), np.abs(left * values)[:, :3], atol=1e-9)
    np.testing.assert_allclose(shares, (values**2 / (values**2).sum())[:3])
    assert ((found**3).sum(axis=0) > 0).all()
    # the sign does not depend on that of the features
    np.testing.assert_allclose(np.abs(principal(-x, 3)[0]), np.abs(found), atol=1e-9)


def test_components_that_there_are_not_are_zero() -> None:
    found, shares = principal(np.arange(8.0).reshape(4, 2), 3)
    assert found.shape == (4, 3)
    assert not found[:, 2].any()
    assert shares[0] == pytest.approx(1)
    assert not principal(np.ones((5, 4)), 2)[0].any()


def test_colours_and_directions_are_those_of_all_samples_together() -> None:
    rng = np.random.default_rng(1)
    looks = [look(n, np.zeros(1), rng.normal(size=(t, 5)) + n) for n, t in enumerate((3, 7, 4))]
    colours, units = as_colours(looks, "trained"), directions(looks, "trained")
    assert [len(c) for c in colours] == [len(u) for u in units] == [3, 7, 4]
    every = np.concatenate(colours)
    assert every.min() == 0
    assert every.max() == 1
    # samples differ, so that one component alone tells the first from the last
    assert abs(colours[0].mean(axis=0) - colours[2].mean(axis=0)).max() > 0.3
    x = np.concatenate([sample.tokens["trained"] for sample in looks])
    first, last = x[0] - x.mean(axis=0), x[-1] - x.mean(axis=0)
    cosine = first @ last / np.linalg.norm(first) / np.linalg.norm(last)
    assert units[0][0] @ units[2][-1] == pytest.approx(cosine, abs=1e-5)


def test_a_sheet_has_its_lines_above_the_area() -> None:
    area = sheet(2.0, "title", ORIGIN)
    height = area.figure.get_size_inches()[1]
    places = [text.get_position()[1] * height for text in area.figure.texts]
    assert texts(area.figure) == ["title", *ORIGIN]
    assert min(places) > area.bottom + area.height
    assert max(places) < height


def test_image_grid_and_the_patch_of_the_contrast(tiny_config: Config) -> None:
    config = tiny_config("image")  # 24 x 32 pixels, patches of 8: a grid of 3 x 4
    picture = ImageFeatures(config)
    example = np.zeros((3, 24, 32), dtype=np.uint8)
    example[:, 17:23, 1:7] = 200  # in the patch in row 2, column 0
    trained = np.random.default_rng(0).normal(size=(12, 8))
    trained[[8, 3]] = 10 * np.ones(8)  # alike: the chosen one and the one at the upper right
    drawn = picture.draw([look(n, example, trained) for n in range(2)], ORIGIN)
    assert list(drawn) == ["principal_components_of_patches", "similarity_to_one_patch"]
    maps = [axes for axes in drawn["similarity_to_one_patch"].axes if axes.images]
    assert len(maps) == 6
    cosines = np.asarray(maps[-1].images[0].get_array())
    assert cosines.shape == (3, 4)
    assert cosines[2, 0] == pytest.approx(1)
    assert cosines[0, 3] == pytest.approx(1)
    assert np.sort(cosines.ravel())[-3] < 0.99
    (frame,) = (patch for patch in maps[-1].patches if isinstance(patch, Rectangle))
    assert (frame.get_x(), frame.get_y()) == (-0.5, 1.5)
    (frame,) = (patch for patch in maps[0].patches if isinstance(patch, Rectangle))
    assert (frame.get_x(), frame.get_y(), frame.get_width()) == (-0.5, 15.5, 8)
    colours = drawn["principal_components_of_patches"].axes[-1].images[0].get_array()
    assert np.asarray(colours).shape == (3, 4, 3)


def test_a_plain_image_has_its_middle(tiny_config: Config) -> None:
    flat = look(0, np.zeros((3, 24, 32), dtype=np.uint8), np.eye(12))
    assert ImageFeatures(tiny_config("image"))._chosen(flat) == 1 * 4 + 2


def test_audio_frames_stand_below_their_moments(tiny_config: Config) -> None:
    config = tiny_config("audio")
    layers, rate = config.encoder.conv_layers, config.input.sampling_rate
    wave = np.random.default_rng(0).normal(size=rate // 2).astype(np.float32)
    looks = [look(n, wave, np.random.default_rng(n).normal(size=(399, 6)), n) for n in range(5)]
    drawn = AudioFeatures(config).draw(looks, ORIGIN)
    assert list(drawn) == ["principal_components_over_time", "similarity_of_moments"]
    strips = drawn["principal_components_over_time"].axes
    assert len(strips) == 4 * 3
    image = strips[1].images[0]
    first, last = frame_start(0, layers) / rate, frame_start(399, layers) / rate
    assert image.get_extent() == pytest.approx([first, last, 0, 1])
    assert np.asarray(image.get_array()).shape == (1, 399, 3)
    assert strips[1].get_xlim() == strips[2].get_xlim() == (0, 0.5)
    assert strips[2].get_title(loc="left") or strips[2].get_title()
    matrix = drawn["similarity_of_moments"].axes[1].images[0]
    assert matrix.get_extent() == pytest.approx([first, last, first, last])
    values = np.asarray(matrix.get_array())
    np.testing.assert_allclose(np.diag(values), 1, rtol=1e-5)
    np.testing.assert_allclose(values, values.T, atol=1e-6)


def test_long_clips_are_cut(tiny_config: Config) -> None:
    config = tiny_config("audio", input={"sampling_rate": 1000})
    wave = np.ones(20_000, dtype=np.float32)
    drawn = AudioFeatures(config).draw([look(0, wave, np.eye(1000))], ORIGIN)
    hop = frame_start(1, config.encoder.conv_layers) - frame_start(0, config.encoder.conv_layers)
    strip = drawn["principal_components_over_time"].axes[0]
    assert strip.get_xlim() == (0, 8)
    assert np.asarray(strip.images[0].get_array()).shape[1] == int(8 * 1000 / hop)


WORDS = ["<s>", "<pad>", "</s>", "<unk>", "\u2581the", "\u2581dog", "\u2581cat", "\u2581sat", "s"]


@pytest.fixture
def text_picture() -> TextFeatures:
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    parsing = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, "<unk>"))
    parsing.decoder = tokenizers.decoders.Metaspace()
    pipeline: Any = SimpleNamespace(tokenizer=SimpleNamespace(parsing=parsing))
    return TextFeatures(pipeline)


def ids(*words: str) -> np.ndarray:
    """Of words between <s> and </s>; "s" is the end of one."""
    return np.array([0, *(WORDS.index(w if w == "s" else f"\u2581{w}") for w in words), 2])


KINDS = {"\u2581dog": 0, "\u2581cat": 0, "\u2581sat": 1, "\u2581the": 2, "s": 3}
"""Dogs are cats."""


@pytest.fixture
def passages() -> list[Look]:
    given = [ids("the", "dog", "s", "sat"), ids("the", "cat", "sat"), ids("sat", "sat")]
    given += [ids("the", "the"), ids("the", "s", "the", "s")]
    tokens = [np.stack([np.eye(6)[KINDS.get(WORDS[t], 4)] for t in example]) for example in given]
    pairs = zip(given, tokens, strict=True)
    return [look(n, example, trained, n % 2) for n, (example, trained) in enumerate(pairs)]


def test_nearest_tokens(
    text_picture: TextFeatures, passages: list[Look], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_picture, "_asked", lambda looks: [(0, 2)])
    drawn = texts(text_picture.draw(passages, ORIGIN)["nearest_tokens"])
    at = drawn.index("dog")
    assert drawn[at - 1 : at + 2] == ["the ", "dog", "s sat"]
    # four texts a line, and four lines: the column of the trained encoder is the last
    lines = [drawn[i : i + 4] for i in range(len(drawn) - 16, len(drawn), 4)]
    assert float(lines[0][0]) == pytest.approx(1, abs=0.01)
    assert [text.strip() for text in lines[0][1:]] == ["the", "cat", "sat"]
    assert float(lines[1][0]) < 0.9
    # never of the passage itself, where "dog" would be nearest
    assert not any("dog" in line[2] for line in lines)


def test_nearest_passages(text_picture: TextFeatures, passages: list[Look]) -> None:
    drawn = texts(text_picture.draw(passages, ORIGIN)["nearest_passages"])
    asked = drawn.index("[0] the dogs sat")
    # cosine and text of three untrained ones, then those of the trained encoder
    nearest = drawn[asked + 7 : asked + 13]
    assert nearest[1] == "[1] the cat sat"
    cosines = [float(text) for text in nearest[::2]]
    assert cosines == sorted(cosines, reverse=True)
    assert "[0] the dogs sat" not in nearest


def test_asked_tokens_begin_words_and_are_different(text_picture: TextFeatures) -> None:
    looks = []
    for number in range(6):
        example = ids("the", "dog" if number % 2 else "cat", "s", "sat")
        looks.append(look(number, example, np.eye(6)))
    asked = text_picture._asked(looks)
    tokens = [WORDS[looks[passage].example[at]] for passage, at in asked]
    assert sorted(tokens) == ["\u2581cat", "\u2581dog", "\u2581sat", "\u2581the"]


def test_one_short_passage_is_enough(text_picture: TextFeatures) -> None:
    drawn = text_picture.draw([look(0, ids("s"), np.eye(3))], ORIGIN)
    assert set(drawn) == {"nearest_tokens", "nearest_passages"}
    assert not any("inf" in text for text in texts(drawn["nearest_tokens"]))


def test_files_of_figures_can_be_made(text_picture: TextFeatures, tmp_path: Path) -> None:
    drawn = text_picture.draw([look(n, ids("the", "dog"), np.eye(4)) for n in range(3)], ORIGIN)
    for name, figure in drawn.items():
        figure.savefig(tmp_path / f"{name}.png", dpi=40)
        assert (tmp_path / f"{name}.png").stat().st_size > 1000
