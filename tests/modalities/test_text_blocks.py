"""Text files in blocks."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from selfdistill.modalities.text import blocks as text_blocks
from selfdistill.modalities.text.blocks import Blocks
from selfdistill.modalities.text.documents import UTF_16, UTF_32, Block, Document
from selfdistill.modalities.text.passages import passages
from selfdistill.modalities.text.sampling import draw
from selfdistill.packing.entries import Entry
from selfdistill.packing.inputs import Inputs


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in (("BLOCK", 64), ("MAX_PLAIN", 700), ("MAX_LINE", 1024)):
        monkeypatch.setattr(text_blocks, name, size)


def documents(path: Path, data: bytes, ends: Any = "blank") -> tuple[list[Document], list[Any]]:
    path.write_bytes(data)
    blocks = Blocks(Inputs.of([Entry(str(path), path.name)]), ends, "text")
    found = [
        entry
        for block in blocks
        for entry in (block.documents("text") if isinstance(block, Block) else [block])
    ]
    assert blocks.position == len(data)
    made = [entry for entry in found if isinstance(entry, Document)]
    return made, [entry for entry in found if not isinstance(entry, Document)]


def test_nobody_waits_for_a_pipe(tmp_path: Path) -> None:
    entries = []
    for suffix in (".txt", ".jsonl.gz", ".parquet"):
        os.mkfifo(tmp_path / f"pipe{suffix}")
        entries.append(Entry(str(tmp_path / f"pipe{suffix}"), f"pipe{suffix}"))
    found = list(Blocks(Inputs.of(entries), "blank", "text"))
    assert found == [(entry.name, "empty text", "") for entry in entries]


@pytest.mark.parametrize("ends", ["blank", "line", "file"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_blocks_cut_no_document(ends: str, newline: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    written = [f"line {i} " + "\u00e9" * int(rng.integers(20)) for i in range(300)]
    for at in rng.choice(300, 120, replace=False):
        written[at] = " " * int(rng.integers(3))
    text = newline.join(written)
    found, skipped = documents(tmp_path / "a.txt", text.encode(), ends)
    assert not skipped
    for document in found:
        first = document.text.split("\n")[0]
        assert first == written[document.line - 1]
    if ends == "blank":
        wanted, held = [], ""
        for line in [*written, ""]:
            held += f"{line}\n" if line.strip() else ""
            if not line.strip() and held:
                wanted.append(held.strip())
                held = ""
        assert [document.text.strip() for document in found] == wanted
    elif ends == "line":
        assert [d.text for d in found] == [line for line in written if line.strip()]
    else:
        whole = "\n".join(document.text.strip("\n") for document in found)
        assert whole.split() == text.split()


@pytest.mark.parametrize("separator", ["", " "])
def test_a_long_line_is_cut_at_a_word_or_a_character(separator: str, tmp_path: Path) -> None:
    text = separator.join(["\u00e9\u4e2d\U0001f600"] * 400)
    found, skipped = documents(tmp_path / "a.txt", f"{text}\nEnd.\n".encode(), "line")
    assert not skipped
    assert separator.join(document.text.strip() for document in found[:-1]) == text
    assert found[-1].text == "End."
    numbers = [document.line for document in found]
    assert numbers == sorted(set(numbers))
    assert len(found) == 7


def test_a_long_line_of_json_is_skipped(tmp_path: Path) -> None:
    row = b'{"text": "%s"}\n'
    data = row % b"a" + row % (b"b " * 3000) + row % b"c" + row % (b"d" * 600) + row % b"e"
    found, skipped = documents(tmp_path / "a.jsonl", data)
    assert [(d.line, d.text[0]) for d in found] == [(1, "a"), (3, "c"), (4, "d"), (5, "e")]
    assert skipped == [("a.jsonl (2)", "a line of more than 1,024 bytes", "")]
    found, skipped = documents(tmp_path / "a.jsonl", row % b"a" + b'{"text": "' + b"b" * 5000)
    assert ([d.line for d in found], len(skipped)) == ([1], 1)


@pytest.mark.parametrize(
    ("coding", "reason"),
    [
        *((coding, UTF_16) for coding in ("utf-16", "utf-16-le", "utf-16-be")),
        *((coding, UTF_32) for coding in ("utf-32", "utf-32-le", "utf-32-be")),
    ],
)
@pytest.mark.parametrize("ends", ["blank", "line", "file"])
@pytest.mark.parametrize("text", ["Two lines.\r\nOf text.\r\n", "\u0441\u043b\u043e\u0432\u043e\n"])
def test_wide_characters_are_no_text(
    coding: str, reason: str, ends: str, text: str, tmp_path: Path
) -> None:
    found, skipped = documents(tmp_path / "a.txt", (text * 9).encode(coding), ends)
    assert not found
    assert reason in {found for _, found, _ in skipped} <= {reason, "empty text"}
    rows = f'{{"text": "{text.strip()}"}}\n'.encode(coding)
    found, skipped = documents(tmp_path / "a.jsonl", rows)
    assert (found, skipped[0][1]) == ([], reason)


def test_a_mark_of_the_other_byte_order(tmp_path: Path) -> None:
    _, skipped = documents(tmp_path / "a.txt", "\ufeffText.\n".encode("utf-32-be"))
    assert skipped == [("a.txt", UTF_32, "it begins with a byte order mark")]


def test_a_few_odd_characters_are_text(tmp_path: Path) -> None:
    found, skipped = documents(tmp_path / "a.txt", b"a\0b\n\x1b[1mred\x1b[0m\n", "line")
    assert ([document.text for document in found], skipped) == (
        ["a\0b", "\x1b[1mred\x1b[0m"],
        [],
    )


def zstd(text: bytes) -> bytes:
    zstandard = pytest.importorskip("zstandard", reason="reads .zst before Python 3.14")
    compressed: bytes = zstandard.ZstdCompressor().compress(text)
    return compressed


def test_frames_of_zstandard_follow_each_other(tmp_path: Path) -> None:
    text = b"".join(b"line %d\n" % i for i in range(500))
    skippable = b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"12345"
    for data in (zstd(text[:1000]) + zstd(b"") + skippable + zstd(text[1000:]), zstd(text)):
        found, skipped = documents(tmp_path / "a.txt.zst", data, "line")
        assert ("\n".join(d.text for d in found).encode() + b"\n", skipped) == (text, [])


@pytest.mark.parametrize("cut", [1, 20, 700])
def test_a_frame_of_zstandard_that_is_cut_is_told(cut: int, tmp_path: Path) -> None:
    text = b"".join(b"line %d\n" % (i * i) for i in range(999))
    for before in (b"", zstd(b"First.\n\n")):
        found, skipped = documents(tmp_path / "a.txt.zst", before + zstd(text)[:-cut])
        assert [entry[:2] for entry in skipped] == [("a.txt.zst", "cannot be read to its end")]
        assert len(found) < 2


def test_rows_come_in_blocks_and_one_that_is_no_utf_8_spoils_no_other(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="reads Parquet")
    import pyarrow
    from pyarrow import parquet

    texts = [b"row %d, caf\xc3\xa9" % i for i in range(600)]
    texts[300] = b"caf\xe9"
    stored = pyarrow.array(texts, pyarrow.binary())
    claimed = pyarrow.Array.from_buffers(pyarrow.string(), len(texts), stored.buffers())
    path = tmp_path / "caf\udce9.parquet"
    for column in (stored, claimed):
        with open(path, "wb") as file:
            parquet.write_table(pyarrow.table({"text": column}), file)
        found, skipped = documents(path, path.read_bytes())
        wanted = [(i, text.decode()) for i, text in enumerate(texts, 1) if i != 301]
        assert [(document.line, document.text) for document in found] == wanted
        assert [entry[:2] for entry in skipped] == [(f"{path.name} (301)", "text is not UTF-8")]
    inputs = Inputs.of([Entry(str(path), path.name)])
    sizes = [b.size for b in Blocks(inputs, "blank", "text") if isinstance(b, Block)]
    assert 64 <= max(sizes) < 96


def test_the_draw_is_from_all_over() -> None:
    blocks = [Block(0, "a", i, "line", b"x" * 100) for i in range(2000)]
    drawn = draw(blocks, seed=0, most=20_000)
    assert len(drawn) == 200
    places = np.array([block.line for block in drawn])
    assert (np.diff(places) > 0).all()
    assert np.histogram(places, 10, (0, 2000))[0].min() > 8
    assert draw(blocks, seed=1, most=20_000) != drawn
    assert draw(blocks, seed=0, most=10**9) == blocks
    assert len(draw(blocks, seed=0, most=1)) == 1


def characters(texts: list[str]) -> list[int]:
    return [len(text) for text in texts]


def test_a_passage_ends_at_the_last_sentence_or_line_that_fits() -> None:
    text = 'One two. "Three four?" Five six\nseven eight. \u4e5d\u5341\u3002\u5341\u4e00 Nine'
    found = passages([text], 22, characters, join=False)
    assert [passage.text for passage in found] == [
        'One two. "Three four?"',
        "Five six\nseven eight.",
        "\u4e5d\u5341\u3002\u5341\u4e00 Nine",
    ]
    assert [passage.tokens for passage in found] == [22, 21, 10]
    found = passages(["Aaaa. Pi is 3.14 or so."], 20, characters, join=False)
    assert [passage.text for passage in found] == ["Aaaa.", "Pi is 3.14 or so."]


def test_a_count_that_does_not_add_up_is_checked() -> None:
    """Such as of tokenizers that take a word for something else in a text's midst."""

    def count(texts: list[str]) -> list[int]:
        return [len(text) + 5 * text.count(". ") for text in texts]

    found = passages(["Aa. Bb. Cc. Dd. Ee. Ff. Gg. Hh."], 20, count, join=True)
    assert max(count([passage.text])[0] for passage in found) <= 20
    assert all(passage.tokens == count([passage.text])[0] for passage in found)
    assert " ".join(passage.text for passage in found) == "Aa. Bb. Cc. Dd. Ee. Ff. Gg. Hh."


@pytest.mark.parametrize("limit", [2, 3, 5])
def test_a_word_may_cost_more_without_its_space(limit: int) -> None:
    """As of a byte-level BPE, which has most words with the space before them."""

    def count(texts: list[str]) -> list[int]:
        return [len(text.split()) + (not text[:1].isspace()) + len(text) // 9 for text in texts]

    text = "one two three, four five six seven eight nine ten. " * 3 + "abcdefghij"
    made = passages([text], limit, count, join=False)
    assert all(passage.tokens == count([passage.text])[0] <= limit for passage in made)
    assert "".join(passage.text for passage in made).replace(" ", "") == text.replace(" ", "")


def test_passages_know_their_document() -> None:
    texts = ["A a. B b.", "C c.", "D d. E e. F f."]
    apart = passages(texts, 9, characters, join=False)
    assert [(p.text, p.document) for p in apart] == [
        ("A a. B b.", 0),
        ("C c.", 1),
        ("D d. E e.", 2),
        ("F f.", 2),
    ]
    joined = passages(texts, 20, characters, join=True)
    assert [(p.text, p.document) for p in joined] == [
        ("A a. B b.\nC c.\nD d.", 0),
        ("E e. F f.", 2),
    ]


@pytest.mark.parametrize("text", ["a" * 300_000, " " * 300_000 + "a", "a\n" * 100_000, ". " * 9999])
def test_odd_texts_take_no_time(text: str) -> None:
    found = passages([text], 500, characters, join=True)
    assert max(passage.tokens for passage in found) <= 500
    assert sum(p.text.count("a") for p in found) == text.count("a")
