"""Reading tokenizers; SentencePiece models as tokenizer.json, with SentencePiece's own ids."""

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unicodedata import category

import pytest
import sentencepiece
from tokenizer_cases import (
    EDGES,
    WHITE_SPACE,
    byte_level,
    corpus,
    odd_strings,
    strings_with_special_tokens,
    train_sentencepiece,
)

from selfdistill.errors import UserError
from selfdistill.modalities.text import sentencepiece_json
from selfdistill.modalities.text.sentencepiece_json import collapse, obstacles
from selfdistill.modalities.text.sentencepiece_model import Kind, Piece, parse_model
from selfdistill.modalities.text.tokenizer import (
    Tokenizer,
    load_tokenizer,
    parse_tokenizer,
    read_tokenizer,
    tokenizer_config,
)
from selfdistill.modalities.text.training import _lines, train_tokenizer

STRINGS = odd_strings() + strings_with_special_tokens()
BYTES = {"byte_fallback": True, "vocab_size": 550}
Model = tuple[sentencepiece.SentencePieceProcessor, Tokenizer]


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Model]:
    """Options of SentencePiece to a model as it reads it, and as we do."""

    def trained(passages: list[str] | None = None, **options: Any) -> Model:
        path = tmp_path / "given.model"
        path.write_bytes(train_sentencepiece(passages, **options))
        return sentencepiece.SentencePieceProcessor(str(path)), read_tokenizer(path)

    return trained


def differing(model: Model, strings: list[str], seen: Callable[[str], str]) -> list[str]:
    theirs, ours = model
    return [s for s in strings if theirs.encode(seen(s)) != ours.encode_literally(s)]


@pytest.mark.parametrize(
    "options",
    [{}, {"model_type": "bpe"}, {"add_dummy_prefix": False}],
    ids=["unigram", "bpe", "without dummy prefix"],
)
def test_ids_are_sentencepiece_s(options: dict[str, Any], make: Callable[..., Model]) -> None:
    """For text whose white space is spaces; all other white space counts as a space."""
    assert len(STRINGS) > 2500
    model = make(**options)
    assert not differing(model, STRINGS, seen=collapse)
    known = [s for s in STRINGS if model[1].unk_id not in model[1].encode_literally(s)]
    assert 1000 < len(known) < 2000


@pytest.mark.parametrize(
    "options",
    [
        {"remove_extra_whitespaces": False},
        {"remove_extra_whitespaces": False, "add_dummy_prefix": False, "model_type": "bpe"},
        BYTES,
        BYTES | {"model_type": "bpe"},
    ],
    ids=["spaces kept", "spaces kept, bare", "bytes", "bytes, bpe"],
)
def test_models_with_white_space_of_their_own(
    options: dict[str, Any], make: Callable[..., Model]
) -> None:
    assert not differing(make(**options), STRINGS, seen=str)


@pytest.mark.parametrize(
    "options",
    [
        {"normalization_rule_name": "nmt_nfkc"},
        {"normalization_rule_name": "nmt_nfkc_cf", "model_type": "bpe"},
    ],
    ids=["nmt_nfkc", "nmt_nfkc_cf"],
)
def test_a_normaliser_s_table_is_exact_but_for_marks(
    options: dict[str, Any], make: Callable[..., Model]
) -> None:
    """``tokenizers`` looks up graphemes, and takes their characters one by one if they are not in
    the table; SentencePiece takes the longest entry."""
    unmarked = [s for s in STRINGS if not any(category(c).startswith("M") for c in s)]
    assert len(unmarked) > 2000
    assert not differing(make(**options), unmarked, seen=str)
    assert not differing(make(**options), ["e\u0301 \uff21\ufb01"], seen=str)


def test_the_spelling_of_a_byte_is_text(make: Callable[..., Model]) -> None:
    model = make(**BYTES, required_chars="</>x0123456789ABCDEF")
    assert not differing(model, ["<0x41>", "a<0xE3><0x00>"], seen=str)


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_text_never_becomes_a_control_symbol(model_type: str, make: Callable[..., Model]) -> None:
    model = make(model_type=model_type, control_symbols=["<mask>", "nalo"])
    assert not differing(model, ["nalo", "banalo nalode"], seen=str)
    assert model[0].piece_to_id("nalo") == 5
    assert 5 not in model[1].encode_literally("banalo nalode")


def test_white_space_that_has_a_piece_stays(make: Callable[..., Model]) -> None:
    passages = [s.replace(", ", "\xa0").replace("-", "\n") for s in corpus()]
    model = make(passages)
    assert not differing(model, ["ba\xa0de", "ki\nlo", "\xa0 \n", "mu  \n  na"], seen=str)
    assert not differing(model, ["ba\tde\u3000 ki\0lo"], seen=collapse)


def test_white_space_is_what_str_split_splits_at() -> None:
    assert sorted(sentencepiece_json.WHITE_SPACE + " ") == sorted(WHITE_SPACE)
    for character in WHITE_SPACE:
        assert collapse(f"{character} a{character}\n{character}b{character}") == "a b"


def test_text_comes_back(make: Callable[..., Model]) -> None:
    keep = {"remove_extra_whitespaces": False}
    for options in ({}, keep, BYTES, keep | {"add_dummy_prefix": False}):
        theirs, ours = make(**options)
        for text in [*EDGES, *corpus(50), "  a   b ", "\U0001f600"]:
            ids = theirs.encode(text)
            found = ours.parsing.decode(ids, skip_special_tokens=False)
            assert found.replace("<unk>", " \u2047 ") == theirs.decode(ids)


def test_long_runs_of_spaces_take_no_time(make: Callable[..., Model]) -> None:
    _, ours = make()
    for character in (" ", "\u2581", "\t"):  # a square of their number would take minutes
        assert ours.encode_literally(f"a{character * 200_000}b")


def test_all_of_a_model_is_read() -> None:
    content = train_sentencepiece(control_symbols=["<mask>", "<sep>"], **BYTES)
    theirs = sentencepiece.SentencePieceProcessor(model_proto=content)
    model = parse_model(content)
    assert len(model.pieces) == theirs.get_piece_size()
    for number, piece in enumerate(model.pieces):
        assert piece.text == theirs.id_to_piece(number)
        assert piece.score == theirs.get_score(number)
        assert (piece.kind == Kind.UNKNOWN) == theirs.is_unknown(number)
        assert (piece.kind == Kind.CONTROL) == theirs.is_control(number)
        assert (piece.kind == Kind.BYTE) == theirs.is_byte(number)
    assert model.pieces[5].text == "<sep>"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model_type": "word"}, "its type is neither unigram nor bpe"),
        ({"treat_whitespace_as_suffix": True}, r"spaces behind words \(treat_whitespace_as_suffix"),
        ({"user_defined_symbols": ["<a>", "<b>", "<c>", "<d>"]}, "'<a>', '<b>', '<c>', ..."),
        ({"control_symbols": []}, r"has no <mask>; train it with .*control_symbols"),
        ({"bos_id": 1, "pad_id": 0}, r"has the ids \(1, 0, 2\).*must be \(0, 1, 2\)"),
        ({"pad_id": -1, "unk_id": 1}, r"has no <pad>; train it with"),
    ],
)
def test_models_that_cannot_be_used_are_refused(
    options: dict[str, Any], words: str, make: Callable[..., Model]
) -> None:
    with pytest.raises(UserError, match=rf"input\.tokenizer: .*given\.model .*{words}"):
        make(**options)


def test_what_cannot_be_trained_is_an_obstacle_too() -> None:
    model = parse_model(train_sentencepiece())
    assert not obstacles(model, [])
    unused = replace(model, pieces=[*model.pieces, Piece("xyz", -3.0, Kind.UNUSED)])
    assert obstacles(unused, []) == ["it has unused pieces ('xyz')"]
    bare = replace(model, escape_whitespaces=False)
    assert obstacles(bare, []) == ["it keeps spaces as they are (escape_whitespaces=false)"]


def test_a_mask_may_be_user_defined(make: Callable[..., Model]) -> None:
    _, ours = make(control_symbols=[], user_defined_symbols=["<mask>"])
    assert ours.encode("<mask>", 9) == [0, ours.mask_id, 2]
    assert not set(ours.encode_literally("<mask>")) & {0, 1, 2, ours.mask_id}


def test_special_tokens_are_parsed_or_not(make: Callable[..., Model], tmp_path: Path) -> None:
    for ours in (make()[1], load_tokenizer(byte_level(tmp_path / "tokenizer.json"))):
        text = "ba <mask> </s>de"
        parsed = ours.encode(text, 99)
        assert (parsed[0], parsed[-1]) == (0, 2)
        assert parsed.count(ours.mask_id) == 1
        assert parsed.count(2) == 2
        literal = ours.encode_literally(text)
        assert literal
        assert min(literal) > 3
        assert ours.mask_id not in literal
        assert ours.encode("", 99) == [0, 2]
        assert ours.encode_literally("") == []


def test_literal_text_never_has_special_tokens(make: Callable[..., Model]) -> None:
    _, ours = make(required_chars="")
    assert "p" not in ours.parsing.get_vocab()
    found = [ours.parsing.id_to_token(i) for i in ours.encode_literally("<pad>ba")]
    assert found == ["\u2581", "<unk>", "ba"]


def test_ids_are_cut_from_the_right(make: Callable[..., Model]) -> None:
    _, ours = make()
    whole = ours.encode(corpus()[0], 999)
    assert len(whole) > 12
    assert ours.encode(corpus()[0], len(whole)) == whole
    assert ours.encode(corpus()[0], len(whole) - 1) == [*whole[:-2], 2]
    assert ours.encode(corpus()[0], 5) == [*whole[:4], 2]


def test_a_pickled_tokenizer_is_the_same(make: Callable[..., Model]) -> None:
    _, ours = make()
    again = pickle.loads(pickle.dumps(ours))
    for text in strings_with_special_tokens(20):
        assert again.encode(text, 12) == ours.encode(text, 12)
        assert again.encode_literally(text) == ours.encode_literally(text)


def test_what_is_written_says_the_same_in_another_order(make: Callable[..., Model]) -> None:
    _, ours = make()
    content = json.loads(ours.content)
    again = json.dumps(dict(reversed(content.items())), separators=(",", ":"))
    assert parse_tokenizer(again, Path("again")).is_same_as(ours)
    content["model"]["vocab"][-1][1] -= 1
    assert not parse_tokenizer(json.dumps(content), Path("other")).is_same_as(ours)


def test_training_is_deterministic_and_leaves_two_files(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        train_tokenizer(corpus(), 200, tmp_path / name)
    first, second = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        for name in ("first", "second")
    )
    assert first == second
    assert sorted(first) == ["tokenizer.json", "tokenizer.model"]
    ours = load_tokenizer(tmp_path / "first" / "tokenizer.json")
    assert ours.is_same_as(read_tokenizer(tmp_path / "first" / "tokenizer.model"))
    assert (ours.vocab_size, ours.mask_id, ours.unk_id) == (200, 4, 3)


def test_white_space_makes_no_difference_to_training(tmp_path: Path) -> None:
    train_tokenizer([s.replace(" ", "\n\t\xa0") for s in corpus()], 200, tmp_path)
    changed = (tmp_path / "tokenizer.model").read_bytes()
    train_tokenizer(corpus(), 200, tmp_path)
    assert (tmp_path / "tokenizer.model").read_bytes() == changed


@pytest.mark.parametrize("joint", [" ", ""], ids=["words", "no spaces"])
def test_long_passages_are_learned_from_as_well(joint: str, tmp_path: Path) -> None:
    """SentencePiece by itself leaves what is longer than 4,192 bytes out."""
    whole = joint.join(word for passage in corpus() for word in passage.split())
    parts = list(_lines([whole, "short"]))
    assert len(whole.encode()) > 4192 > max(len(part.encode()) for part in parts)
    assert "".join("".join(parts).split()) == "".join(whole.split()) + "short"
    train_tokenizer([whole], 200, tmp_path)
    assert load_tokenizer(tmp_path / "tokenizer.json").vocab_size == 200


def test_a_vocabulary_that_the_text_cannot_fill_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"encoder\.vocab_size.*9000.*lower it or add text"):
        train_tokenizer(corpus(), 9000, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("none.json", None, r"cannot read .*none\.json: No such file.*or leave the key empty"),
        ("none.model", None, r"cannot read .*none\.model: No such file"),
        ("empty.model", b"", r"empty\.model is no SentencePiece model.*leave the key empty"),
        ("text.model", b"not a model", r"text\.model is no SentencePiece model"),
        ("bytes.json", b"\xff\xfe", r"bytes\.json is no tokenizer\.json \('utf-8'"),
        ("empty.json", b"", r"empty\.json is damaged, or no tokenizer\.json \(EOF"),
        ("other.json", b"{}", r"other\.json is damaged, or no tokenizer\.json \(Model missing"),
    ],
)
def test_what_is_no_tokenizer_is_refused(
    name: str, content: bytes | None, words: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"^input\.tokenizer: .*{words}"):
        read_tokenizer(tmp_path / name)


def no_frame(content: dict[str, Any]) -> None:
    content["post_processor"] = None


def other_frame(content: dict[str, Any]) -> None:
    content["post_processor"] = {"type": "BertProcessing", "sep": ["<s>", 0], "cls": ["</s>", 2]}


def swap_ids(content: dict[str, Any]) -> None:
    vocab = content["model"]["vocab"]
    vocab["<s>"], vocab["<pad>"] = 1, 0
    content["added_tokens"][0]["id"], content["added_tokens"][1]["id"] = 1, 0


def longer_frame(content: dict[str, Any]) -> None:
    tokens = [{"SpecialToken": {"id": token, "type_id": 0}} for token in ("<s>", "</s>")]
    text = {"Sequence": {"id": "A", "type_id": 0}}
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [tokens[0], text, tokens[1], tokens[1]],
        "pair": [],
        "special_tokens": {
            token: {"id": token, "ids": [number], "tokens": [token]}
            for token, number in (("<s>", 0), ("</s>", 2))
        },
    }


def ordinary_mask(content: dict[str, Any]) -> None:
    content["added_tokens"][-1]["special"] = False


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (swap_ids, r"has the ids \(1, 0, 2\) for the special tokens.*must be \(0, 1, 2\)"),
        (no_frame, "does not put a text between <s> and </s>; its post_processor must"),
        (other_frame, "does not put a text between <s> and </s>"),
        (longer_frame, "does not put a text between <s> and </s>"),
        (ordinary_mask, "has no special token <mask>; name a tokenizer made with one"),
    ],
)
def test_other_layouts_are_refused(
    change: Callable[[dict[str, Any]], None], words: str, tmp_path: Path
) -> None:
    path = byte_level(tmp_path / "tokenizer.json")
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"input\.tokenizer: .*tokenizer\.json {words}"):
        load_tokenizer(path)


def test_padding_and_cutting_of_a_file_are_not_ours(tmp_path: Path) -> None:
    path = byte_level(tmp_path / "tokenizer.json")
    plain = load_tokenizer(path)
    changed = json.loads(path.read_text())
    changed["truncation"] = {
        "direction": "Left",
        "max_length": 4,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    changed["padding"] = {
        "strategy": {"Fixed": 99},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 1,
        "pad_type_id": 0,
        "pad_token": "<pad>",
    }
    path.write_text(json.dumps(changed))
    text = corpus()[0]
    assert load_tokenizer(path).encode(text, 99) == plain.encode(text, 99)
    assert load_tokenizer(path).encode_literally(text) == plain.encode_literally(text)


def test_byte_pairs_have_the_mask_last(tmp_path: Path) -> None:
    ours = load_tokenizer(byte_level(tmp_path / "tokenizer.json"))
    assert (ours.vocab_size, ours.mask_id, ours.unk_id) == (321, 320, 3)


def test_the_config_beside_it_says_what_is_not_in_it(tmp_path: Path) -> None:
    fields = tokenizer_config(load_tokenizer(byte_level(tmp_path / "a.json")), 24)
    assert fields["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert fields["model_max_length"] == 24
    assert fields["add_prefix_space"] is False
    path = byte_level(tmp_path / "b.json", add_prefix_space=True)
    assert tokenizer_config(load_tokenizer(path), 24)["add_prefix_space"] is True


def test_repositories_older_than_tokenizer_json(tmp_path: Path) -> None:
    """They have RoBERTa's vocab.json and merges.txt alone, and perhaps what was added."""
    whole = byte_level(tmp_path / "whole.json")
    content = json.loads(whole.read_text(encoding="utf-8"))
    merges = [" ".join(pair) for pair in content["model"]["merges"]]
    vocab = json.dumps(content["model"]["vocab"])
    (tmp_path / "vocab.json").write_text(vocab, encoding="utf-8")
    text = "\n".join(["#version: 0.2", *merges, ""])
    (tmp_path / "merges.txt").write_text(text, encoding="utf-8")
    ours, theirs = (load_tokenizer(path) for path in (tmp_path / "tokenizer.json", whole))
    strings = odd_strings() + strings_with_special_tokens()
    assert [ours.encode(s, 999) for s in strings] == [theirs.encode(s, 999) for s in strings]
    assert ours.is_same_as(parse_tokenizer(ours.content, whole))
    added = tmp_path / "added_tokens.json"  # as transformers 4 has it
    added.write_text(json.dumps({"<mask>": ours.mask_id, "foo": ours.mask_id + 1}))
    more = load_tokenizer(tmp_path / "tokenizer.json")
    assert more.encode("ba foo<mask>", 9) == [*ours.encode("ba ", 9)[:-1], 321, 320, 2]
    assert [more.encode(s, 999) for s in strings] == [ours.encode(s, 999) for s in strings]
    for spoilt, words in (('{"foo": 9}', "ids that .* gives to foo do not"), ("[", "is damaged")):
        added.write_text(spoilt)
        with pytest.raises(UserError, match=words):
            load_tokenizer(tmp_path / "tokenizer.json")
    added.unlink()
    (tmp_path / "merges.txt").write_text("a b c", encoding="utf-8")
    with pytest.raises(UserError, match=r"vocab\.json, merges\.txt or added_tokens\.json is dam"):
        load_tokenizer(tmp_path / "tokenizer.json")
