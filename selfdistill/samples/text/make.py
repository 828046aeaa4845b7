"""Make the text samples of the package from the King James Bible.

Needs this package and the Debian packages ``bible-kjv`` and ``bible-kjv-text`` (4.38 in Debian
12).  The exact commands, from the root of the repository::

    apt-get install --no-install-recommends bible-kjv bible-kjv-text
    python selfdistill/samples/text/make.py                    # writes the four shards
    python selfdistill/samples/text/measure.py                 # prints counts and baselines

``make.py FOLDER`` writes to another folder than its own, ``measure.py FOLDER`` measures that one.
The shards are byte for byte the same at every run with one seed (and one version of zlib).

``train.tar.gz`` and ``test.tar.gz`` hold passages of whole sentences, labelled with the kind of
book they are from.  ``order-train.tar.gz`` and ``order-test.tar.gz`` hold single sentences or
clauses, in half of which two neighbouring words changed places (label 1).  No book is in both a
train and a test shard, and no chapter is in both ``train.tar.gz`` and ``order-train.tar.gz``.
"""

import argparse
import math
import random
import re
import subprocess
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from selfdistill.samples.shard import write_shard

LABELS = ("law", "history", "wisdom", "prophets", "gospels", "letters")
"""The kinds of book; the place in this tuple is the integer label."""

BOOKS = {  # kind: (books of the train split, books of the test split), as `bible -f` names them
    "law": ("Ge Exo Num Deu", "Lev"),
    "history": ("Josh Jdgs 2Sm 1Ki 2Ki 1Chr 2Chr Ezra Neh", "1Sm Ruth Est"),
    "wisdom": ("Job Psa Eccl", "Prv SSol"),
    "prophets": (
        "Isa Jer Lam Eze Dan Joel Obad Jonah Nahum Hab Zep Hag",
        "Hos Amos Mic Zec Mal",
    ),
    "gospels": ("Mat Mark Luke Acts", "John"),
    "letters": (
        "Rom 1Cor Gal Eph Col 1Th 2Th 1Tim 2Tim Titus Phmn Jas 2Pet 1Jn 2Jn 3Jn Jude",
        "2Cor Phi Heb 1Pet",
    ),
}

PASSAGE_WORDS = (20, 60)  # fewest and most words of a passage
PASSAGE_FULL = 44  # a passage takes further sentences up to this many words
TRAIN_CHARACTERS = 540_000  # most characters of one kind of book in the train split
ORDER_SHARE = 0.25  # least share of the train books' chapters kept for the order task
TEST_PASSAGES = 250  # passages of each kind in the test split
SHINGLE = 8  # a test passage shares few runs of this many words with the train books
SHINGLE_SHARE = 0.2
ORDER_WORDS = (6, 16)  # fewest and most words of an order sentence
ORDER_FULL = 12  # a sentence longer than this is cut at commas
ORDER_FREQUENT = 15  # each of its words is at least so often in the train split
SWAP_SEEN = 3  # the two words of a swap are at least so often neighbours in the train split
ORDER_TRAIN, ORDER_TEST = 6800, 2500

LINE = re.compile(r"(\d?[A-Za-z]+?)(\d+):(\d+) (.*)")
WORD = re.compile(r"[a-z]+(?:['-][a-z]+)*'?")


class Chapter(NamedTuple):
    """One chapter of a book: the kind of the book, its name and the running text."""

    kind: str
    book: str
    text: str


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case, without punctuation."""
    return WORD.findall(text.lower())


def read_bible(command: str) -> list[str]:
    """Return the verses, one a line, as ``Ge1:1 In the beginning ...``."""
    done = subprocess.run(
        [command, "-f", "gen1:1-rev22:21"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=True,
    )
    return done.stdout.decode("ascii").splitlines()


def chapters_of(lines: Iterable[str], split: int) -> list[Chapter]:
    """Join the verses of one split (0 train, 1 test) to chapters, in the order of the Bible."""
    kinds = {book: kind for kind, splits in BOOKS.items() for book in splits[split].split()}
    verses: dict[tuple[str, str], list[str]] = {}
    for line in lines:
        match = LINE.fullmatch(line.rstrip())
        if match is None:
            raise ValueError(f"not a verse: {line!r}")
        book, chapter, _, text = match.groups()
        if book in kinds:
            verses.setdefault((book, chapter), []).append(" ".join(text.split()))
    if missing := set(kinds) - {book for book, _ in verses}:
        raise ValueError(f"the Bible lacks {sorted(missing)}")
    return [Chapter(kinds[book], book, " ".join(text)) for (book, _), text in verses.items()]


def passages_of(text: str) -> list[str]:
    """Cut a chapter into passages of one or a few neighbouring sentences."""
    fewest, most = PASSAGE_WORDS
    passages: list[str] = []
    held: list[str] = []
    count = 0
    for sentence in re.split(r"(?<=[.?!]) (?=[A-Z(])", text):
        length = len(sentence.split())
        if held and count + length > (PASSAGE_FULL if count >= fewest else most):
            if count >= fewest:
                passages.append(" ".join(held))
            held, count = [], 0
        if length <= most:
            held.append(sentence)
            count += length
    if count >= fewest:
        passages.append(" ".join(held))
    return [text for text in passages if text[0].isupper() and text[-1] in ".?!"]


def clauses_of(text: str) -> list[str]:
    """Cut a chapter into sentences and clauses, at stops and colons, long ones at commas too."""
    fewest, most = ORDER_WORDS
    clauses = []
    for sentence in re.split(r"(?<=[.;:?!]) ", text):
        held: list[str] = []
        for part in re.split(r"(?<=,) ", sentence):
            if held and len(" ".join([*held, part]).split()) > ORDER_FULL:
                clauses.append(" ".join(held))
                held = []
            held.append(part)
        clauses.append(" ".join(held))
    return [
        clause
        for clause in clauses
        if fewest <= len(clause.split()) <= most
        and clause[-1] in ",.;:?!"
        and not set(clause) & set("()-")
    ]


def swap_of(clause: str, neighbours: Counter[tuple[str, str]], rng: random.Random) -> str | None:
    """Swap two neighbouring words within the clause; None where no two may change places.

    Both words are in lower case and carry no punctuation, so that capitals, punctuation and the
    set of tokens between spaces stay just as they were.  The train split knows the two words in
    this order and never in the other, so that the swap is an error and not another way to say it.
    """
    words = clause.split()
    places = [
        place
        for place in range(1, len(words) - 2)
        if neighbours[words[place], words[place + 1]] >= SWAP_SEEN
        and not neighbours[words[place + 1], words[place]]
        and all(re.fullmatch("[a-z]+", word) for word in words[place : place + 2])
    ]
    if not places:
        return None
    place = rng.choice(places)
    words[place], words[place + 1] = words[place + 1], words[place]
    return " ".join(words)


def split_train(
    chapters: Sequence[Chapter], rng: random.Random
) -> tuple[list[tuple[str, int]], list[Chapter]]:
    """Share the train books out: passages of the train split, chapters for the order task."""
    samples: list[tuple[str, int]] = []
    rest: list[Chapter] = []
    seen: set[str] = set()
    for label, kind in enumerate(LABELS):
        own = [chapter for chapter in chapters if chapter.kind == kind]
        rng.shuffle(own)
        kept = math.ceil(ORDER_SHARE * len(own))
        rest += own[:kept]
        size = 0
        for chapter in own[kept:]:
            if size >= TRAIN_CHARACTERS:
                rest.append(chapter)
                continue
            for passage in passages_of(chapter.text):
                if passage not in seen:
                    seen.add(passage)
                    samples.append((passage, label))
                    size += len(passage)
    rng.shuffle(samples)
    return samples, rest


def shingles_of(text: str) -> set[tuple[str, ...]]:
    """Return the runs of SHINGLE words of a text."""
    words = words_of(text)
    return {tuple(words[at : at + SHINGLE]) for at in range(len(words) - SHINGLE + 1)}


def split_test(
    chapters: Sequence[Chapter], train: Iterable[Chapter], rng: random.Random
) -> list[tuple[str, int]]:
    """Choose the passages of the test split, as many of each kind, none told in a train book."""
    known = set().union(*(shingles_of(chapter.text) for chapter in train))
    samples: list[tuple[str, int]] = []
    for label, kind in enumerate(LABELS):
        own = [chapter for chapter in chapters if chapter.kind == kind]
        passages = sorted({passage for chapter in own for passage in passages_of(chapter.text)})
        fresh = []
        for passage in passages:
            shingles = shingles_of(passage)
            if len(shingles & known) <= SHINGLE_SHARE * len(shingles):
                fresh.append((passage, label))
        samples += rng.sample(fresh, TEST_PASSAGES)
    rng.shuffle(samples)
    return samples


def order_samples(
    chapters: Iterable[Chapter],
    counts: Counter[str],
    neighbours: Counter[tuple[str, str]],
    seen: set[tuple[str, ...]],
    number: int,
    rng: random.Random,
) -> list[tuple[str, int]]:
    """Make order sentences of clauses with other words than ``seen``, half of them swapped.

    The choice of a clause, and of its two words, comes before the choice of its label and does
    not depend on it.
    """
    pairs: list[tuple[str, str]] = []
    for chapter in chapters:
        for clause in clauses_of(chapter.text):
            words = tuple(sorted(words_of(clause)))
            if words in seen or min(counts[word] for word in words) < ORDER_FREQUENT:
                continue
            seen.add(words)
            swapped = swap_of(clause, neighbours, rng)
            if swapped is not None:
                pairs.append((clause, swapped))
    print(f"{len(pairs)} order sentences to choose {number} from")
    chosen = rng.sample(pairs, number)
    return [(pair[place % 2], place % 2) for place, pair in enumerate(chosen)]


def make(folder: Path, command: str, seed: int) -> None:
    """Write the four shards."""
    rng = random.Random(seed)
    lines = read_bible(command)
    train_chapters, test_chapters = chapters_of(lines, 0), chapters_of(lines, 1)
    train, rest = split_train(train_chapters, rng)
    test = split_test(test_chapters, train_chapters, rng)
    counts = Counter(word for text, _ in train for word in words_of(text))
    neighbours = Counter(pair for text, _ in train for pair in pairwise(words_of(text)))
    # No order sentence has the words of another, or of a clause in the train passages.
    used = {id(chapter) for chapter in rest}
    seen = {
        tuple(sorted(words_of(clause)))
        for chapter in train_chapters
        if id(chapter) not in used
        for clause in clauses_of(chapter.text)
    }
    order_train = order_samples(rest, counts, neighbours, seen, ORDER_TRAIN, rng)
    order_test = order_samples(test_chapters, counts, neighbours, seen, ORDER_TEST, rng)
    rng.shuffle(order_train)
    rng.shuffle(order_test)
    folder.mkdir(parents=True, exist_ok=True)
    shards = {"train": train, "test": test, "order-train": order_train, "order-test": order_test}
    for prefix, (name, samples) in zip("abcd", shards.items(), strict=True):
        path = folder / f"{name}.tar.gz"
        write_shard(path, prefix, "txt", ((text.encode(), label) for text, label in samples))
        print(f"{path.name}: {len(samples)} samples, {path.stat().st_size} bytes")


def main() -> None:
    """Read the command line and make the shards."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).resolve().parent)
    parser.add_argument("--bible", default="bible", help="the command of the package bible-kjv")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    make(options.folder, options.bible, options.seed)


if __name__ == "__main__":
    main()
