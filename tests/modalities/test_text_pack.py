"""Text to passages, and the tokenizer that comes with them."""

import gzip
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from raw_data import content, packed, samples, sentences, skipped, write_texts
from tokenizer_cases import byte_level, train_sentencepiece

from selfdistill.errors import UserError
from selfdistill.modalities.text import blocks as text_blocks
from selfdistill.modalities.text import pack as text_pack
from selfdistill.modalities.text.tokenizer import load_tokenizer, read_tokenizer

TEXTS = [" ".join(sentences(2 + i % 3, seed=i)) for i in range(40)]


def texts(out: Path) -> dict[str, str]:
    found = samples(out)
    assert all(list(members) == ["txt"] for members in found.values())
    return {key: members["txt"].decode() for key, members in sorted(found.items())}


def rows(*values: Any) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


def write_gz(path: Path, data: bytes) -> None:
    path.write_bytes(gzip.compress(data))


def write_zst(path: Path, data: bytes) -> None:
    zstandard = pytest.importorskip("zstandard", reason="reads .zst before Python 3.14")
    half = len(data) // 2
    path.write_bytes(b"".join(zstandard.compress(part) for part in (data[:half], data[half:])))


def write_parquet(path: Path, data: bytes) -> None:
    pytest.importorskip("pyarrow", reason="reads Parquet")
    from pyarrow import Table, parquet

    values = [json.loads(line)["text"] for line in data.splitlines()]
    parquet.write_table(Table.from_pydict({"id": range(len(values)), "text": values}), path)


def write_plain(path: Path, data: bytes) -> None:
    path.write_bytes(data)


PLAIN = "\n\n".join(TEXTS).encode()
JSON = rows(*({"id": i, "text": text} for i, text in enumerate(TEXTS))).encode()


@pytest.mark.parametrize(
    ("name", "data", "write"),
    [
        ("a.txt", PLAIN, write_plain),
        ("a.txt.gz", PLAIN, write_gz),
        ("a.txt.zst", PLAIN, write_zst),
        ("a.jsonl", JSON, write_plain),
        ("a.jsonl.gz", JSON, write_gz),
        ("a.json.gz", JSON, write_gz),
        ("a.jsonl.zst", JSON, write_zst),
        ("a.parquet", JSON, write_parquet),
    ],
)
def test_every_kind_of_file_says_the_same(
    name: str, data: bytes, write: Callable[[Path, bytes], None], tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / name, data)
    packed("text", tmp_path / "in", tmp_path / "out")
    assert " ".join(texts(tmp_path / "out").values()).split() == " ".join(TEXTS).split()
    assert not skipped(tmp_path / "out")


def test_passages_are_full_and_end_with_sentences(tmp_path: Path) -> None:
    write_texts(tmp_path / "in", documents=200)
    packed("text", tmp_path / "in", tmp_path / "out", max_tokens=100)
    tokenizer = load_tokenizer(tmp_path / "out/tokenizer.json")
    found = list(texts(tmp_path / "out").values())
    counts = [len(tokenizer.encode_literally(text)) + 2 for text in found]
    assert max(counts) <= 100
    assert sum(counts) > 0.85 * 100 * len(counts)
    assert all(text.endswith(".") for text in found)
    assert all(text == text.strip() for text in found)


def test_documents_can_be_kept_apart(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(PLAIN)
    packed("text", tmp_path / "a.txt", tmp_path / "out", no_join=True, max_tokens=512)
    assert list(texts(tmp_path / "out").values()) == TEXTS
    assert list(texts(tmp_path / "out"))[:3] == ["a@00001", "a@00003", "a@00005"]


def test_what_ends_a_document(tmp_path: Path) -> None:
    text = "One two.\nThree.\n \t\n\n\nFour.\r\n\r\nFive.\n"
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    train_on(tmp_path / "given.model")
    wanted = {
        "blank": {"a@00001": "One two.\nThree.", "a@00006": "Four.", "a@00008": "Five."},
        "line": {
            "a@00001": "One two.",
            "a@00002": "Three.",
            "a@00006": "Four.",
            "a@00008": "Five.",
        },
        "file": {"a@00001": "One two.\nThree.\n \t\n\n\nFour.\n\nFive."},
    }
    for documents, found in wanted.items():
        out = tmp_path / documents
        own = {"documents": documents, "tokenizer": str(tmp_path / "given.model")}
        packed("text", tmp_path / "a.txt", out, no_join=True, max_tokens=512, **own)
        assert texts(out) == found


def train_on(path: Path, **options: Any) -> Path:
    path.write_bytes(train_sentencepiece(**options))
    return path


def test_joined_documents_begin_on_a_new_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(PLAIN)
    packed("text", tmp_path / "a.txt", tmp_path / "out", max_tokens=512)
    assert "\n".join(texts(tmp_path / "out").values()).replace("\n\n", "\n").split("\n") == TEXTS


def test_a_long_document_has_several_passages(tmp_path: Path) -> None:
    text = " ".join(sentences(40))
    (tmp_path / "a.jsonl").write_text(rows({"text": "Short."}, {"text": text}))
    packed("text", tmp_path / "a.jsonl", tmp_path / "out", no_join=True, vocab_size=310)
    found = texts(tmp_path / "out")
    assert list(found)[:4] == ["a@00001", "a@00002", "a@00002-001", "a@00002-002"]
    assert " ".join(list(found.values())[1:]) == text


def test_one_word_may_be_longer_than_a_passage(tmp_path: Path) -> None:
    word = "".join(text.replace(" ", "").lower() for text in TEXTS)
    (tmp_path / "a.txt").write_text(f"Before it. {word} behind it.\n")
    packed("text", tmp_path / "a.txt", tmp_path / "out", vocab_size=300)
    tokenizer = load_tokenizer(tmp_path / "out/tokenizer.json")
    found = list(texts(tmp_path / "out").values())
    assert max(len(tokenizer.encode_literally(text)) for text in found) <= 22
    assert len(found) < 1.6 * len(tokenizer.encode_literally(word)) / 22
    assert "".join(found).replace(" ", "") == f"Beforeit.{word}behindit."


@pytest.mark.parametrize("kind", ["roberta", "sentencepiece", "bytes"])
def test_a_tokenizer_may_be_given(kind: str, tmp_path: Path) -> None:
    """Those whose words depend on what stands before them, too."""
    given = tmp_path / ("given.json" if kind == "roberta" else "given.model")
    if kind == "roberta":
        byte_level(given)
    else:
        train_on(given, **({"byte_fallback": True, "vocab_size": 550} if kind == "bytes" else {}))
    write_texts(tmp_path / "in")
    lines = packed("text", tmp_path / "in", tmp_path / "out", tokenizer=str(given), max_tokens=200)
    ours = load_tokenizer(tmp_path / "out/tokenizer.json")
    assert ours.is_same_as(read_tokenizer(given))
    assert ("tokenizer.model" in content(tmp_path / "out")) == (kind != "roberta")
    counts = [len(ours.encode_literally(text)) + 2 for text in texts(tmp_path / "out").values()]
    assert max(counts) <= 200
    assert sum(counts) > 0.85 * 200 * len(counts)
    assert f"encoder.vocab_size={ours.vocab_size}" in lines[-1]
    assert ("encoder.mask_id=320" in lines[-1]) == (kind == "roberta")


@pytest.mark.parametrize("model", ["unigram", "bpe"])
@pytest.mark.parametrize("no_byte_fallback", [False, True])
def test_a_trained_tokenizer_is_sentencepiece_s(
    model: str, no_byte_fallback: bool, tmp_path: Path
) -> None:
    write_texts(tmp_path / "in")
    size = 55 if no_byte_fallback else 310
    own = {"model": model, "no_byte_fallback": no_byte_fallback, "vocab_size": size}
    lines = packed("text", tmp_path / "in", tmp_path / "out", **own)
    ours = load_tokenizer(tmp_path / "out/tokenizer.json")
    path = tmp_path / "out/tokenizer.model"
    theirs = sentencepiece.SentencePieceProcessor(str(path))
    assert ours.vocab_size == theirs.get_piece_size() == size
    for text in TEXTS:
        assert ours.encode_literally(text) == theirs.encode(text)
    strange = ours.encode_literally("ba \u4e2d lo")
    assert strange == theirs.encode("ba \u4e2d lo")
    assert (ours.unk_id in strange) == no_byte_fallback
    spaced = ours.encode_literally("ba\nlo \t\xa0mo\r\n")
    assert spaced == ours.encode_literally("ba lo mo")
    assert no_byte_fallback or spaced == theirs.encode("ba\nlo \t\xa0mo\r\n")
    if not no_byte_fallback:  # the normaliser is exact, and one that words are remembered with
        marked = "ba\xa0\u0301lo"
        assert ours.encode_literally(marked) == theirs.encode(marked)
        assert ours.words is not None
    read = read_tokenizer(path)
    assert no_byte_fallback or read.encode_literally("ba\nlo mo") == ours.encode_literally(
        "ba lo mo"
    )
    assert f"input.tokenizer={tmp_path / 'out/tokenizer.json'}" in lines[-1]
    assert lines[-1].endswith(f"input.max_tokens=24 encoder.vocab_size={size}")


def test_what_cannot_be_used_is_skipped(tmp_path: Path) -> None:
    root = tmp_path / "in"
    write_texts(root)
    (root / "latin.txt").write_bytes(b"caf\xe9 is good.\n\nStill good.\n")
    lines = rows({"text": "Fine."}, {"body": 1}, {"text": 3}, {"text": " \t"}, ["text"])
    (root / "odd.jsonl").write_text(
        f'{lines}{{"text": "\\ud800"}}\n\nno json\n{"[" * 100_000}\n{rows({"text": "Good."})}'
    )
    (root / "cut.txt.gz").write_bytes(gzip.compress(PLAIN)[:-30])
    (root / "no.txt.gz").write_bytes(b"this is no gzip")
    (root / "empty.txt").write_bytes(b"")
    (root / "gone.txt").symlink_to("nothing")
    packed("text", root, tmp_path / "out", no_join=True)
    found = texts(tmp_path / "out")
    assert (found["odd@00001"], found["odd@00010"]) == ("Fine.", "Good.")
    assert found["latin@00003"] == "Still good."
    no_entry = "json without the entry 'text'"
    assert skipped(tmp_path / "out") == {
        "latin.txt (1)": "text is not UTF-8",
        "odd.jsonl (2)": no_entry,
        "odd.jsonl (3)": "a value that is no text",
        "odd.jsonl (4)": "empty text",
        "odd.jsonl (5)": no_entry,
        "odd.jsonl (6)": "text is not UTF-8",
        "odd.jsonl (8)": "undecodable json",
        "odd.jsonl (9)": "undecodable json",
        "cut.txt.gz": "cannot be read to its end",
        "no.txt.gz": "cannot be read to its end",
        "empty.txt": "empty text",
        "gone.txt": "cannot be read to its end",
    }


def test_parquet_without_the_column(tmp_path: Path) -> None:
    write_texts(tmp_path / "in")
    write_parquet(tmp_path / "in/a.parquet", JSON)
    (tmp_path / "in/b.parquet").write_bytes(b"PAR1 not really")
    (tmp_path / "in/rows.jsonl").write_text(rows(*({"id": text} for text in TEXTS)))
    packed("text", tmp_path / "in", tmp_path / "out", field="id")
    reasons = skipped(tmp_path / "out")
    assert reasons["b.parquet"] == "cannot be read to its end"
    assert reasons["a.parquet (1)"] == "a value that is no text"
    packed("text", tmp_path / "in", tmp_path / "other", field="content")
    assert skipped(tmp_path / "other")["a.parquet"] == "no column 'content'"


@pytest.mark.parametrize(
    ("name", "package"), [("a.parquet", "pyarrow"), ("a.txt.zst", "zstandard")]
)
def test_a_missing_package_is_named(
    name: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("compression.zstd", "zstandard", "pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UserError, match=rf"'{name}' can be read .*; pip install {package}"):
        packed("text", tmp_path / name, tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_tokens": 2}, "--max-tokens: 2 must be 3 or more"),
        ({"vocab_size": 9000}, r"--vocab-size: SentencePiece could not make 9000 .*<= \d+"),
        ({"vocab_size": 20}, r"--vocab-size: SentencePiece .* 20 .*text \(Vocab.*\); raise it$"),
        ({"tokenizer": "none.model"}, r"--tokenizer: cannot read none\.model"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    write_texts(tmp_path / "in")
    with pytest.raises(UserError, match=words):
        packed("text", tmp_path / "in", tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
    packed("text", tmp_path / "in", tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.jsonl", rows(*[{"body": "Good."}] * 3).encode(), "3 x json .* has body; --field "),
        ("a.txt", b"caf\xe9\n\ncaf\xe9\n", "2 x text is not UTF-8 "),
        ("a.txt.gz", gzip.compress(PLAIN, mtime=0)[:-30], "1 x cannot be read to its end "),
        ("a.txt", b"", r"1 x empty text \(such as a\.txt: "),
        ("a.jsonl.gz", gzip.compress(b"", mtime=0), "1 x empty text "),
        ("a.txt", b" \n\n\t\n", "there is nothing in it$"),
    ],
)
def test_why_there_is_no_text_for_a_tokenizer(
    name: str, data: bytes, words: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=f"^SOURCE: nothing of it can be packed: {words}"):
        packed("text", tmp_path / name, tmp_path / "out")


def test_another_tokenizer_of_the_same_name_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_texts(tmp_path / "in")
    given = train_on(tmp_path / "given.model")
    packed("text", tmp_path / "in", tmp_path / "out", tokenizer=str(given))
    before = content(tmp_path / "out")
    (tmp_path / "out/train-000000.tar").unlink()
    train_on(given, vocab_size=200)
    with pytest.raises(UserError, match=r"was begun with another tokenizer\.model"):
        packed("text", tmp_path / "in", tmp_path / "out", tokenizer=str(given))
    train_on(given)
    packed("text", tmp_path / "in", tmp_path / "out", tokenizer=str(given))
    assert content(tmp_path / "out") == before


def test_lots_hold_some_text_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where lots end depends on the text alone, and nothing is lost there."""
    monkeypatch.setattr(text_pack, "LOT_BYTES", 600)
    monkeypatch.setattr(text_blocks, "BLOCK", 150)
    write_texts(tmp_path / "in", documents=100)
    packed("text", tmp_path / "in", tmp_path / "out", no_join=True, max_tokens=512)
    lines = (tmp_path / "in/plain.txt").read_text().split("\n\n")
    wanted = [line.strip() for line in lines]
    wanted += [
        json.loads(line)["text"] for line in (tmp_path / "in/rows.jsonl").read_text().splitlines()
    ]
    assert list(texts(tmp_path / "out").values()) == wanted
