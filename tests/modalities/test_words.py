"""Ids word by word are the ids of the whole text, or are not used."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizer_cases import (
    byte_level,
    corpus,
    odd_strings,
    strings_with_special_tokens,
    train_sentencepiece,
)

from selfdistill.modalities.text import words
from selfdistill.modalities.text.tokenizer import (
    Tokenizer,
    load_tokenizer,
    parse_tokenizer,
    read_tokenizer,
)

STRINGS = odd_strings(100) + strings_with_special_tokens(100)
BYTES = {"byte_fallback": True, "vocab_size": 550}
Make = Callable[..., Tokenizer]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def trained(passages: list[str] | None = None, **options: Any) -> Tokenizer:
        path = tmp_path / "given.model"
        path.write_bytes(train_sentencepiece(passages, **options))
        return read_tokenizer(path)

    return trained


def whole(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of the text in one piece."""
    ids = tokenizer.literal.encode(text, add_special_tokens=False).ids
    return [tokenizer.unk_id if i in tokenizer.special_ids else i for i in ids]


@pytest.mark.parametrize(
    "options",
    [{}, {"model_type": "bpe"}, BYTES, BYTES | {"model_type": "bpe"}],
    ids=["unigram", "bpe", "bytes", "bytes, bpe"],
)
def test_words_in_a_row_are_the_text(options: dict[str, Any], make: Make) -> None:
    tokenizer = make(**options)
    assert tokenizer.words is not None
    for _ in range(2):  # as they are found, and as they are remembered
        assert all(tokenizer.encode_literally(s) == whole(tokenizer, s) for s in STRINGS)
    assert len(tokenizer.words) > 100


@pytest.mark.parametrize(
    "options",
    [
        {"add_dummy_prefix": False},
        {"remove_extra_whitespaces": False},
        {"normalization_rule_name": "nmt_nfkc"},
        {"split_by_whitespace": False},
        {"passages": [f"a\u3000{text}" for text in corpus(50)], "vocab_size": 60},
    ],
    ids=["no prefix", "spaces kept", "normalised", "across words", "a space of its own"],
)
def test_others_are_read_whole(options: dict[str, Any], make: Make) -> None:
    tokenizer = make(**options)
    assert tokenizer.words is None
    assert all(tokenizer.encode_literally(s) == whole(tokenizer, s) for s in STRINGS[:200])


def test_a_space_that_is_no_piece_may_join_words(make: Make) -> None:
    given = make()
    without = given.content.replace('"\u2581",', '"\ue000",')
    assert without != given.content
    tokenizer = parse_tokenizer(without, given.path)
    assert tokenizer.words is None
    assert tokenizer.encode_literally("\u00bf \u00bf") == [tokenizer.unk_id]


def test_text_never_becomes_a_special_token(make: Make) -> None:
    tokenizer = make(required_chars="", passages=["bade kilo mu"] * 50, vocab_size=30)
    assert tokenizer.words is not None
    text = "ba <s> ki"
    assert tokenizer.encode_literally(text) == whole(tokenizer, text)
    assert not tokenizer.special_ids - {tokenizer.unk_id} & set(tokenizer.encode_literally(text))


def test_byte_level_tokenizers_are_read_whole(tmp_path: Path) -> None:
    assert load_tokenizer(byte_level(tmp_path / "tokenizer.json")).words is None


def test_dropout_is_not_frozen(make: Make) -> None:
    given = make(model_type="bpe")
    assert '"dropout": null' in given.content
    changed = given.content.replace('"dropout": null', '"dropout": 0.5')
    assert parse_tokenizer(changed, given.path).words is None


def test_a_spelled_space_is_no_word(make: Make) -> None:
    tokenizer = make()
    text = "ba\u2581de ki\u2581 lo"
    assert tokenizer.encode_literally(text) == whole(tokenizer, text)
    assert not tokenizer.words


def test_memory_is_bounded(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "MOST", 10)
    monkeypatch.setattr(words, "LONGEST", 4)
    tokenizer = make()
    text = "badekilomuna " + " ".join(corpus(20))
    assert tokenizer.encode_literally(text) == whole(tokenizer, text)
    assert tokenizer.words is not None
    assert len(tokenizer.words) == 10
    assert max(map(len, tokenizer.words)) <= 4


def test_workers_start_with_an_empty_memory(make: Make) -> None:
    tokenizer = make()
    ids = tokenizer.encode_literally("bade kilo")
    assert tokenizer.words
    sent = pickle.loads(pickle.dumps(tokenizer))
    assert sent.words == {}
    assert sent.encode_literally("bade kilo") == ids
