"""Documents to passages that fill a model's input, cut where sentences or lines end."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

Count = Callable[[list[str]], list[int]]
"""Texts to how many tokens each has."""

_END = re.compile(
    r"\n\s*|[.!?\u2026][\"')\]\u2019\u201d]*(?=\s)|[\u3002\uff01\uff1f][\u300d\u300f\u201d]*"
)
_WORD = re.compile(r"\s*\S+")


@dataclass(frozen=True)
class Passage:
    """A text for one input of a model.

    Attributes:
        text: without white space at its ends.
        tokens: how many.
        document: the number of the document that it begins in.
    """

    text: str
    tokens: int
    document: int


def passages(documents: Sequence[str], limit: int, count: Count, join: bool) -> list[Passage]:
    """Cut documents into passages.

    Args:
        documents: each begins on a new line.
        limit: tokens of a passage, at least 1.
        count: exact for a passage; those of its parts need not add up to it.
        join: whether a passage goes on with the next document.

    Returns:
        In order, all with tokens. Each ends at the last end of a sentence or line that fits; at a
        word where there is none, inside one where there is no other way.
    """
    before = "\n" if join else ""
    found = [
        (part, number)
        for number, document in enumerate(documents)
        for part in _sentences(before + document.strip())
    ]
    counts = count([part for part, _ in found])
    parts = [
        fitting
        for (text, number), tokens in zip(found, counts, strict=True)
        for fitting in _fitting(Passage(text, tokens, number), limit, count)
    ]
    made = _checked(list(_groups(parts, limit, join)), limit, count)
    return [passage for passage in made if passage.tokens]


def _sentences(text: str) -> Iterator[str]:
    """Parts that end with a sentence or before a line end; white space stands before words, as most
    tokenizers have it."""
    first = 0
    for found in _END.finditer(text):
        end = found.start() if found.group().startswith("\n") else found.end()
        if end > first:
            yield text[first:end]
            first = end
    if first < len(text):
        yield text[first:]


def _fitting(part: Passage, limit: int, count: Count) -> Iterator[Passage]:
    """The part, or smaller ones that are no longer than the limit."""
    if part.tokens <= limit or len(part.text) == 1:
        yield part
        return
    smaller = _WORD.findall(part.text)
    if len(smaller) == 1:
        size = max(int(len(part.text) * 0.9 * limit / part.tokens), 1)
        smaller = [part.text[i : i + size] for i in range(0, len(part.text), size)]
    for text, tokens in zip(smaller, count(smaller), strict=True):
        yield from _fitting(Passage(text, tokens, part.document), limit, count)


def _groups(parts: Sequence[Passage], limit: int, join: bool) -> Iterator[list[Passage]]:
    """Neighbours that together have no more tokens than the limit."""
    group: list[Passage] = []
    total = 0
    for part in parts:
        ends = not join and group and part.document != group[-1].document
        if group and (ends or total + part.tokens > limit):
            yield group
            group, total = [], 0
        group.append(part)
        total += part.tokens
    if group:
        yield group


def _checked(groups: Sequence[list[Passage]], limit: int, count: Count) -> Iterator[Passage]:
    """The passages of groups; a group that is too long after all makes two, and so does a part,
    whose first word may have more tokens without the space before it."""
    texts = ["".join(part.text for part in group).strip() for group in groups]
    for group, text, tokens in zip(groups, texts, count(texts), strict=True):
        passage, parts = Passage(text, tokens, group[0].document), group
        if tokens > limit and len(group) == 1:
            parts = list(_fitting(passage, limit, count))
        if tokens <= limit or len(parts) == 1:
            yield passage
        else:
            middle = len(parts) // 2
            yield from _checked([parts[:middle], parts[middle:]], limit, count)
