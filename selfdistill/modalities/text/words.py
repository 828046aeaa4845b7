"""Ids of a text word by word, remembered, where no piece reaches from one word into the next."""

import json
from collections.abc import Callable, Collection, Iterable
from itertools import chain
from typing import Any

import tokenizers

from selfdistill.modalities.text.sentencepiece_json import SPACE, identity_normalizer, words_of

MOST = 100_000
"""Words that are remembered, about 30 MB; the frequent ones come first by themselves."""
LONGEST = 32
"""Characters of a word that is worth it; scripts without spaces have longer ones."""


class WordIds(dict[str, tuple[int, ...]]):
    """The ids of words; made by ``word_ids``."""

    def __init__(
        self,
        model: Any,
        split: Callable[[str], Iterable[str]],
        special_ids: Collection[int],
        unk_id: int,
    ) -> None:
        self._model = model
        self._split = split
        self._special_ids = special_ids
        self._unk_id = unk_id

    def __missing__(self, word: str) -> tuple[int, ...]:
        found = (token.id for token in self._model.tokenize(SPACE + word))
        # a unigram model that has no piece for "<" finds nothing better than the token
        ids = tuple(self._unk_id if i in self._special_ids else i for i in found)
        if len(self) < MOST and len(word) <= LONGEST:
            self[word] = ids
        return ids

    def encode(self, text: str) -> list[int]:
        """Ids of a text that does not spell ``SPACE``."""
        return list(chain.from_iterable(map(self.__getitem__, self._split(text))))


def word_ids(
    tokenizer: tokenizers.Tokenizer, special_ids: Collection[int], unk_id: int
) -> WordIds | None:
    """The words of a tokenizer; None where a text's ids are not those of its words in a row.

    They are where it normalises nothing but white space, and a space is a piece and only ever the
    beginning of one.
    """
    given = json.loads(tokenizer.to_str())
    pieces = tokenizer.get_vocab(with_added_tokens=False)
    split = _splits().get(json.dumps(given["normalizer"]))
    apart = (
        given["pre_tokenizer"] is None
        and all(token["special"] for token in given["added_tokens"])
        and _is_plain(given["model"])
        and SPACE in pieces
        and not any(SPACE in piece[1:] for piece in pieces)
    )
    return WordIds(tokenizer.model, split, special_ids, unk_id) if split and apart else None


def _splits() -> dict[str, Callable[[str], Iterable[str]]]:
    """What cuts a text into words, by the normaliser that it stands for."""
    found: dict[str, Callable[[str], Iterable[str]]] = {}
    for byte_fallback, split in ((False, words_of), (True, _between_spaces)):
        bare = tokenizers.Tokenizer(tokenizers.models.BPE())
        bare.normalizer = identity_normalizer(byte_fallback)
        found[json.dumps(json.loads(bare.to_str())["normalizer"])] = split
    return found


def _between_spaces(text: str) -> Iterable[str]:
    return filter(None, text.split(" "))


def _is_plain(model: dict[str, Any]) -> bool:
    """Whether neither chance nor marks of a word's ends have a part in it."""
    marks = ("dropout", "continuing_subword_prefix", "end_of_word_suffix")
    return model["type"] in ("Unigram", "BPE") and not any(model.get(mark) for mark in marks)
