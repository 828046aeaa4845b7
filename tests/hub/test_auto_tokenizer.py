"""What is written for transformers' AutoTokenizer makes of a text what the package makes of it."""

import json
from pathlib import Path

import pytest
from tokenizer_cases import (
    byte_level,
    corpus,
    odd_strings,
    strings_with_special_tokens,
    train_sentencepiece,
)
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from selfdistill.modalities.text.sentencepiece_json import collapse
from selfdistill.modalities.text.tokenizer import (
    Tokenizer,
    load_tokenizer,
    read_tokenizer,
    tokenizer_config,
)
from selfdistill.modalities.text.training import train_tokenizer

MAX_TOKENS = 24
STRINGS = odd_strings() + strings_with_special_tokens()
Pair = tuple[PreTrainedTokenizerBase, Tokenizer]


def trained(folder: Path) -> None:
    train_tokenizer(corpus(), 300, folder)
    (folder / "tokenizer.model").unlink()


def converted(folder: Path) -> None:
    path = folder / "given.model"
    path.write_bytes(train_sentencepiece(model_type="bpe", byte_fallback=True, vocab_size=550))
    content = read_tokenizer(path).content
    (folder / "tokenizer.json").write_text(content, encoding="utf-8")
    path.unlink()


def published(folder: Path) -> None:
    byte_level(folder / "tokenizer.json")


def published_with_prefix(folder: Path) -> None:
    byte_level(folder / "tokenizer.json", add_prefix_space=True)


def published_with_settings(folder: Path) -> None:
    path = byte_level(folder / "tokenizer.json")
    content = json.loads(path.read_text(encoding="utf-8"))
    content["truncation"] = {
        "direction": "Left",
        "max_length": 8,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    content["padding"] = {
        "strategy": {"Fixed": 99},
        "direction": "Left",
        "pad_to_multiple_of": None,
        "pad_id": 1,
        "pad_type_id": 0,
        "pad_token": "<pad>",
    }
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture(
    scope="module",
    params=[trained, converted, published, published_with_prefix, published_with_settings],
    ids=lambda write: write.__name__,
)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """AutoTokenizer on a folder of two files, and the package on the first of them."""
    folder = tmp_path_factory.mktemp(request.param.__name__)
    request.param(folder)
    ours = load_tokenizer(folder / "tokenizer.json")
    fields = json.dumps(tokenizer_config(ours, MAX_TOKENS))
    (folder / "tokenizer_config.json").write_text(fields, encoding="utf-8")
    return AutoTokenizer.from_pretrained(str(folder)), ours


def test_ids_are_the_same(pair: Pair) -> None:
    theirs, ours = pair
    assert len(STRINGS) > 2500
    whole = [theirs(text)["input_ids"] for text in STRINGS]
    assert whole == [ours.encode(text, 10_000) for text in STRINGS]
    assert max(map(len, whole)) > 2 * MAX_TOKENS


def test_truncation_is_the_same(pair: Pair) -> None:
    theirs, ours = pair
    cut = theirs(STRINGS, truncation=True)["input_ids"]
    assert cut == [ours.encode(text, MAX_TOKENS) for text in STRINGS]
    assert max(map(len, cut)) == MAX_TOKENS
    shorter = theirs(STRINGS, truncation=True, max_length=5)["input_ids"]
    assert shorter == [ours.encode(text, 5) for text in STRINGS]


def test_literal_ids_are_the_same(pair: Pair) -> None:
    theirs, ours = pair
    for text in strings_with_special_tokens():
        ids = theirs(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert ids == ours.encode_literally(text)


def test_special_tokens(pair: Pair) -> None:
    theirs, ours = pair
    assert theirs.is_fast
    assert len(theirs) == ours.vocab_size
    assert (theirs.bos_token_id, theirs.cls_token_id) == (0, 0)
    assert (theirs.eos_token_id, theirs.sep_token_id) == (2, 2)
    assert (theirs.pad_token_id, theirs.unk_token_id) == (1, 3)
    assert theirs.mask_token_id == ours.mask_id
    assert theirs.model_max_length == MAX_TOKENS
    assert theirs("<mask>")["input_ids"] == [0, ours.mask_id, 2]


def test_two_texts_are_put_together_as_roberta_does(pair: Pair) -> None:
    theirs, ours = pair
    first, second = (ours.encode(text, 999)[1:-1] for text in corpus(2))
    found = theirs(*corpus(2))
    assert found["input_ids"] == [0, *first, 2, 2, *second, 2]
    assert list(found) == ["input_ids", "attention_mask"]


def test_batches_are_padded_on_the_right(pair: Pair) -> None:
    theirs, ours = pair
    texts = ["ba", "ba de ki", ""]
    found = theirs(texts, padding=True, return_tensors="np")
    rows = [ours.encode(text, 99) for text in texts]
    longest = max(map(len, rows))
    assert found["input_ids"].tolist() == [row + [1] * (longest - len(row)) for row in rows]
    assert found["attention_mask"].tolist() == [
        [1] * len(row) + [0] * (longest - len(row)) for row in rows
    ]


def test_text_comes_back(pair: Pair) -> None:
    theirs, ours = pair
    for text in [*corpus(100), "ba , de .  ki n't", "<ba> 12"]:
        ids = ours.encode(text, 999)
        found = theirs.decode(ids, skip_special_tokens=True)
        assert collapse(found) == collapse(text)
        if '"Prepend"' in ours.content:
            assert found == collapse(text)
    marked = theirs.decode(ours.encode("ba<mask>", 99))
    assert marked.replace(" ", "") == "<s>ba<mask></s>"
