"""Measure the text samples: counts, what the shards promise, and simple baselines.

python selfdistill/samples/text/measure.py [FOLDER]
"""

import argparse
import math
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from selfdistill.samples.text.make import words_of


def read_shard(path: Path) -> tuple[list[str], list[int]]:
    """Return the texts and the labels of a shard."""
    texts, labels = [], []
    with tarfile.open(path) as tar:
        for member in tar:
            file = tar.extractfile(member)
            if file is None:
                raise ValueError(f"{path}: {member.name} is not a file")
            content = file.read().decode()
            if member.name.endswith(".txt"):
                texts.append(content)
            else:
                labels.append(int(content))
    return texts, labels


class LanguageModel:
    """A count-based model of the next word, smoothed by ever shorter contexts (Witten-Bell)."""

    def __init__(self, texts: Iterable[str], order: int) -> None:
        """Count the runs of up to ``order`` words in the texts."""
        self.order = order
        self.runs: Counter[tuple[str, ...]] = Counter()
        self.contexts: Counter[tuple[str, ...]] = Counter()
        self.kinds: Counter[tuple[str, ...]] = Counter()
        for text in texts:
            words = self.words(text)
            for at in range(len(words)):
                for length in range(min(order, at + 1)):
                    run = tuple(words[at - length : at + 1])
                    self.runs[run] += 1
                    self.contexts[run[:-1]] += 1
                    self.kinds[run[:-1]] += self.runs[run] == 1

    @staticmethod
    def words(text: str) -> list[str]:
        """Cut a text into words in lower case and punctuation marks."""
        return re.findall(r"[a-z'-]+|[^a-z'\s-]", text.lower())

    def probability(self, context: tuple[str, ...], word: str) -> float:
        """Return the smoothed probability of a word after a context."""
        kinds = self.kinds[context]
        lower = self.probability(context[1:], word) if context else 1e-5
        if not kinds:
            return lower
        count = self.runs[*context, word]
        return (count + kinds * lower) / (self.contexts[context] + kinds)

    def score(self, text: str) -> tuple[float, float, float]:
        """Return the least log probability, the least gain over the lone word, and the mean."""
        words = self.words(text)
        logs, gains = [], []
        for at in range(1, len(words)):
            context = tuple(words[max(0, at - self.order + 1) : at])
            log = math.log(self.probability(context, words[at]))
            logs.append(log)
            gains.append(log - math.log(self.probability((), words[at])))
        return min(logs), min(gains), sum(logs) / len(logs)


def cut_accuracy(
    train: Sequence[float], train_labels: Sequence[int], test: Sequence[float], labels: list[int]
) -> float:
    """Return the test accuracy of the threshold best on train (at or below it is label 1)."""
    ranked = sorted(zip(train, train_labels, strict=True))
    right = best = len(ranked) - sum(train_labels)
    cut = -math.inf
    for score, label in ranked:
        right += 1 if label else -1
        if right > best:
            best, cut = right, score
    return sum((s <= cut) == bool(y) for s, y in zip(test, labels, strict=True)) / len(labels)


def measure(folder: Path) -> None:
    """Print the counts of the shards, check what they promise, and print the baselines."""
    shards = {}
    for name in ("train", "test", "order-train", "order-test"):
        texts, labels = shards[name] = read_shard(folder / f"{name}.tar.gz")
        lengths = sorted(len(text.split()) for text in texts)
        print(
            f"{name}: {len(texts)} samples, {sum(map(len, texts))} characters, {sum(lengths)} words"
            f" ({lengths[0]} to {lengths[-1]}, mean {sum(lengths) / len(lengths):.1f}),"
            f" labels {sorted(Counter(labels).items())}"
        )

    def accuracy(train: str, test: str, vectorizer: Any, c: float = 1.0) -> float:
        model = make_pipeline(
            vectorizer, LogisticRegression(C=c, max_iter=2000, class_weight="balanced")
        )
        return float(model.fit(*shards[train]).score(*shards[test]))

    def shape(text: str) -> list[str]:
        words = re.sub("[a-z]+", "x", re.sub("[A-Z]", "X", text)).split()
        return [f"{place} {word}" for place, word in enumerate(words)]

    order = "order-train", "order-test"
    bags = [tuple(sorted(words_of(text))) for name in order for text in shards[name][0]]
    print(f"order: sentences with the same words as another: {len(bags) - len(set(bags))}")
    tokens = {"token_pattern": r"\S+", "lowercase": False}
    pairs = CountVectorizer(ngram_range=(2, 2), binary=True, **tokens)
    characters = TfidfVectorizer(analyzer="char", ngram_range=(1, 5), min_df=3)
    rows = {
        "kind: tf-idf of words": accuracy("train", "test", TfidfVectorizer(sublinear_tf=True), 10),
        "order: counts of words": accuracy(*order, CountVectorizer()),
        "order: counts of tokens between spaces": accuracy(*order, CountVectorizer(**tokens)),
        "order: capitals and marks by place": accuracy(*order, CountVectorizer(analyzer=shape)),
        "order: neighbouring tokens": accuracy(*order, pairs, 0.3),
        "order: characters, 1 to 5 in a row": accuracy(*order, characters, 3.0),
    }
    for row, result in rows.items():
        print(f"{row}: {result:.4f}")
    (train_texts, train_labels), (test_texts, test_labels) = (shards[name] for name in order)
    for length in (2, 3):
        model = LanguageModel(shards["train"][0], length)
        scores = [[model.score(text) for text in texts] for texts in (train_texts, test_texts)]
        for which, what in enumerate(("least log probability", "least gain", "mean")):
            one, two = ([score[which] for score in part] for part in scores)
            got = cut_accuracy(one, train_labels, two, test_labels)
            print(f"order: {length}-gram model of train.tar.gz, {what}: {got:.4f}")
        joint = LogisticRegression().fit(scores[0], train_labels).score(scores[1], test_labels)
        print(f"order: {length}-gram model of train.tar.gz, all three: {joint:.4f}")


def main() -> None:
    """Read the command line and measure the shards."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).resolve().parent)
    measure(parser.parse_args().folder)


if __name__ == "__main__":
    main()
