"""Token features of text for people: the nearest neighbours of tokens and of passages."""

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from selfdistill.modalities.learned import (
    ENCODERS,
    MARGIN,
    WIDTH,
    FeaturePicture,
    Look,
    directions,
    sheet,
    unit,
)
from selfdistill.modalities.picture import INK, MASKED, Area
from selfdistill.modalities.text.data import TextPipeline
from selfdistill.modalities.text.picture import MONOSPACE, piece_text
from selfdistill.modalities.text.sentencepiece_json import SPACE
from selfdistill.modalities.text.tokenizer import EOS_ID

SIZE = 6.8
"""Points of the letters."""
ADVANCE = MONOSPACE * SIZE
LINE = 0.15
SPACING = 0.13
TOKENS, NEAREST = 6, 4
FEWEST = 3
"""Times that a token occurs whose neighbours are shown."""
PASSAGES, NEAREST_PASSAGES = 4, 3
TITLE = 0.24
COLUMN = (WIDTH - 2 * MARGIN - 0.16) / 2
LETTERS = int(COLUMN / ADVANCE) - 5
"""Of a line in one column, behind the cosine."""
PASSAGE_LINES = 2


class TextFeatures(FeaturePicture):
    samples = 1_000

    def __init__(self, pipeline: TextPipeline) -> None:
        self._tokenizer = pipeline.tokenizer

    def draw(self, looks: Sequence[Look], origin: Sequence[str]) -> dict[str, Figure]:
        return {
            "nearest_tokens": self._tokens(looks, origin),
            "nearest_passages": self._passages(looks, origin),
        }

    def _tokens(self, looks: Sequence[Look], origin: Sequence[str]) -> Figure:
        how = (
            f"Cosine to the tokens of {len(looks) - 1:,} other passages, after the mean of all is "
            "taken off."
        )
        owner = np.repeat(np.arange(len(looks)), [len(look.example) for look in looks])
        place = np.concatenate([np.arange(len(look.example)) for look in looks])
        features = {name: np.concatenate(directions(looks, name)) for name in ENCODERS}
        asked = self._asked(looks)
        block = LINE * (NEAREST + 1) + SPACING
        area = sheet(TITLE + block * len(asked), "Nearest tokens", [*origin, how])
        self._head(area)
        for number, (passage, at) in enumerate(asked):
            top = area.height - TITLE - number * block
            row = int(np.flatnonzero((owner == passage) & (place == at))[0])
            wide = int((WIDTH - 2 * MARGIN) / ADVANCE)
            self._write_token(area, 0, top, looks[passage], at, wide, "")
            for column, encoder in enumerate(ENCODERS):
                cosines = features[encoder] @ features[encoder][row]
                cosines[owner == passage] = -np.inf
                for line, near in enumerate(np.argsort(-cosines, kind="stable")[:NEAREST], 1):
                    if not np.isfinite(cosines[near]):
                        break
                    left, up = column * (COLUMN + 0.16), top - LINE * line
                    look, there = looks[owner[near]], int(place[near])
                    self._write_token(
                        area, left, up, look, there, LETTERS, f"{cosines[near]:4.2f} "
                    )
        return area.figure

    def _asked(self, looks: Sequence[Look]) -> list[tuple[int, int]]:
        """Passage and place of tokens that begin a word, each another one and none of the
        commonest; of each passage the one closest to its middle."""
        counts = np.bincount(np.concatenate([look.example for look in looks]))
        kinds = np.sort(counts[counts > 0])[::-1]
        most = kinds[len(kinds) // 10]
        found: dict[int, tuple[int, int]] = {}
        for number, look in enumerate(looks):
            middle = np.argsort(np.abs(np.arange(len(look.example)) - len(look.example) // 2))
            for at in middle.tolist():
                token = int(look.example[at])
                begins = self._begins(token) and self._text(token)[1:].isalpha()
                if begins and FEWEST <= counts[token] <= most and token not in found:
                    found[token] = (number, at)
                    break
            if len(found) == TOKENS:
                break
        return list(found.values()) or [(0, min(1, len(looks[0].example) - 1))]

    def _text(self, token: int) -> str:
        return piece_text(self._tokenizer.parsing, token)

    def _begins(self, token: int) -> bool:
        return self._text(token).startswith(SPACE)

    def _words(self, ids: np.ndarray) -> str:
        """Tokens as text; a space at its beginning is kept."""
        if not len(ids):
            return ""
        text = " ".join(self._tokenizer.parsing.decode(ids.tolist()).split())
        return f" {text}" if self._begins(int(ids[0])) else text

    def _write_token(
        self, area: Area, left: float, top: float, look: Look, at: int, letters: int, cosine: str
    ) -> None:
        """A token within its passage: in the middle of a line, or, without a cosine, at its left
        and all bold."""
        last = len(look.example) - (look.example[-1] == EOS_ID)
        before, after = self._words(look.example[1:at]), self._words(look.example[at + 1 : last])
        token = self._text(int(look.example[at])).removeprefix(SPACE)
        if self._begins(int(look.example[at])):
            before += " "
        half = max((letters - len(token)) // 2, 1)
        before = before[-half:].rjust(half) if cosine else before[-half:].lstrip()
        after = after[: max(letters - len(before) - len(token), 0)]
        self._write(area, left, top, cosine, INK)
        left += len(cosine) * ADVANCE
        weight = "normal" if cosine else "bold"
        for text, colour, how in (
            (before, "black", weight),
            (token, MASKED, "bold"),
            (after, "black", weight),
        ):
            self._write(area, left, top, text, colour, how)
            left += len(text) * ADVANCE

    def _passages(self, looks: Sequence[Look], origin: Sequence[str]) -> Figure:
        how = (
            f"Cosine between means over the tokens, among {len(looks):,} passages, after the mean "
            "of all is taken off."
        )
        features = {}
        for encoder in ENCODERS:
            means = np.stack([look.tokens[encoder].mean(axis=0) for look in looks])
            features[encoder] = unit(means - means.mean(axis=0))
        asked = range(min(PASSAGES, len(looks)))
        block = LINE * (1 + PASSAGE_LINES * NEAREST_PASSAGES) + SPACING
        area = sheet(TITLE + block * len(asked), "Nearest passages", [*origin, how])
        self._head(area)
        for number in asked:
            top = area.height - TITLE - number * block
            wide = int((WIDTH - 2 * MARGIN) / ADVANCE)
            self._write(area, 0, top, self._cut(looks[number], wide, 1)[0], "black", "bold")
            for column, encoder in enumerate(ENCODERS):
                cosines = features[encoder] @ features[encoder][number]
                cosines[number] = -np.inf
                left, up = column * (COLUMN + 0.16), top - LINE
                for near in np.argsort(-cosines, kind="stable")[:NEAREST_PASSAGES]:
                    if not np.isfinite(cosines[near]):
                        break
                    self._write(area, left, up, f"{cosines[near]:4.2f} ", INK)
                    for line, text in enumerate(self._cut(looks[near], LETTERS, PASSAGE_LINES)):
                        self._write(area, left + 5 * ADVANCE, up - line * LINE, text, "black")
                    up -= PASSAGE_LINES * LINE
        return area.figure

    def _cut(self, look: Look, letters: int, lines: int) -> list[str]:
        """The beginning of a passage in at most so many lines, its label in front."""
        last = len(look.example) - (look.example[-1] == EOS_ID)
        text = self._words(look.example[1:last]).strip()
        text = text if look.label is None else f"[{look.label}] {text}"
        return textwrap.wrap(text, letters, max_lines=lines, placeholder=" ...") or [""]

    def _head(self, area: Area) -> None:
        for column, encoder in enumerate(ENCODERS):
            left = (area.left + column * (COLUMN + 0.16)) / WIDTH
            height = float(area.figure.get_size_inches()[1])
            up = (area.bottom + area.height - 0.1) / height
            area.figure.text(left, up, encoder, size=9, va="center")

    def _write(
        self, area: Area, left: float, top: float, text: str, colour: str, weight: str = "normal"
    ) -> None:
        size = area.figure.get_size_inches()
        area.figure.text(
            (area.left + left) / size[0],
            (area.bottom + top - LINE / 2) / size[1],
            text,
            color=colour,
            weight=weight,
            size=SIZE,
            family="monospace",
            va="center_baseline",
        )
