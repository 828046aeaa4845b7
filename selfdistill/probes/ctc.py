"""A linear layer on frozen frames that spells transcripts, and its character error rate.

Trained by connectionist temporal classification (Graves and others, 2006), decoded greedily: the
likeliest character of each frame, repeats joined, blanks left out. Characters are taken as they
are, white space counts as one space.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from selfdistill.errors import UserError
from selfdistill.probes.bootstrap import Interval, ratio_interval
from selfdistill.probes.features import Features
from selfdistill.probes.splits import validation_split
from selfdistill.probes.tokens import CPU, LayerTokens, best_pass

BATCH = 32
MAX_PASSES = 60
RATES = (1e-2, 1e-3)
BLANK = 0
TRANSCRIPT = "txt"
"""The extension of a sample's transcript."""


@dataclass(frozen=True)
class SpellingScore:
    """What a CTC probe found.

    Attributes:
        rate: edits (inserted, deleted, replaced characters) over characters of the test split.
        layer: the layer that did best on the validation part.
        interval: of the rate, 95 %; see ``ratio_interval``.
        errors, characters: int64 [n], edits and length of each test transcript.
        layers: the same of every layer.
    """

    rate: float
    layer: int
    interval: Interval
    errors: np.ndarray = field(compare=False, repr=False)
    characters: np.ndarray = field(compare=False, repr=False)
    layers: "Sequence[SpellingScore]" = ()


class _Speller:
    """The characters of a training split, by number."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._letters = ["", *sorted(set("".join(texts)))]
        self._numbers = {letter: number for number, letter in enumerate(self._letters)}
        self.outputs = len(self._letters)

    def numbers(self, text: str) -> list[int]:
        return [self._numbers[letter] for letter in text]

    def text(self, best: np.ndarray) -> str:
        """What the likeliest numbers [T] of the frames spell."""
        joined = [number for number, _ in groupby(best.tolist())]
        return "".join(self._letters[number] for number in joined)


def spell(
    train: Features,
    train_texts: Sequence[str],
    test: Features,
    test_texts: Sequence[str],
    seed: int = 0,
    device: torch.device = CPU,
    named: str = "DATA",
) -> SpellingScore:
    """The probe on every layer, and on the one with fewest errors on the validation part.

    Rate and number of passes are chosen there, too, see ``best_pass``. Transcripts that have not
    frames enough are no part of the training.

    Args:
        train, test: tokens; see ``Features``.
        train_texts, test_texts: transcripts.
        seed: of the validation part and of the order.
        device: to train on.
        named: the training split, in error messages.

    Raises:
        UserError: there is a single sample, or no transcript is short enough to train on.
    """
    speller = _Speller(train_texts)
    fit, held = validation_split(np.zeros(len(train_texts), dtype=np.int64), seed)
    if not len(held):
        raise UserError(
            f"{named}: a single sample for training leaves none to choose a layer by; give more"
        )
    assert train.lengths is not None
    needed = np.array([frames_needed(text) for text in train_texts])
    fit = fit[(needed <= train.lengths)[fit]]
    if not len(fit):
        raise UserError(
            f"{named}: every transcript needs more frames than the encoder makes of its sample, "
            f"such as {needed[0]} where there are {train.lengths[0]}; give transcripts of what is "
            "said in the samples"
        )
    validated, scores = [], []
    for layer in range(len(train.layers)):
        tokens = LayerTokens(train, layer, seed=seed, device=device)
        fitted = [_fit(tokens, train_texts, speller, fit, held, rate, seed) for rate in RATES]
        rate, model = min(fitted, key=lambda found: found[0])
        tested = LayerTokens(test, layer, tokens)
        errors = _errors(model, tested, test_texts, speller, np.arange(len(tested)))
        validated.append(rate)
        scores.append(_score(errors, test_texts, layer, seed))
    return replace(scores[int(np.argmin(validated))], layers=scores)


def transcript(content: bytes) -> str:
    """What a member holds; white space counts as one space."""
    return " ".join(content.decode("utf-8", "replace").split())


def frames_needed(text: str) -> int:
    """Equal neighbours need a blank between them."""
    return len(text) + sum(a == b for a, b in pairwise(text))


def edits(told: str, expected: str) -> int:
    """Levenshtein distance."""
    last = list(range(len(expected) + 1))
    for i, a in enumerate(told, 1):
        row = [i]
        for j, b in enumerate(expected, 1):
            row.append(min(last[j] + 1, row[-1] + 1, last[j - 1] + (a != b)))
        last = row
    return last[-1]


def _score(errors: np.ndarray, texts: Sequence[str], layer: int, seed: int) -> SpellingScore:
    characters = np.array([len(text) for text in texts])
    rate = float(errors.sum() / characters.sum())
    interval = ratio_interval(errors, characters, seed)
    return SpellingScore(rate, layer, interval, errors, characters)


def _fit(
    tokens: LayerTokens,
    texts: Sequence[str],
    speller: _Speller,
    fit: np.ndarray,
    held: np.ndarray,
    rate: float,
    seed: int,
) -> tuple[float, nn.Linear]:
    """Validated error rate and the layer that has it."""
    model = nn.Linear(tokens.width, speller.outputs).to(tokens.device)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    optimizer = torch.optim.Adam(model.parameters(), rate)
    characters = max(sum(len(texts[i]) for i in held), 1)

    def loss(samples: np.ndarray) -> Tensor:
        return _loss(model, tokens, samples, [speller.numbers(texts[i]) for i in samples])

    def error() -> float:
        return float(_errors(model, tokens, texts, speller, held).sum() / characters)

    return best_pass(model, optimizer, loss, error, fit, BATCH, MAX_PASSES, seed)


def _loss(
    model: nn.Linear, tokens: LayerTokens, samples: np.ndarray, targets: Sequence[Sequence[int]]
) -> Tensor:
    x, _ = tokens.batch(samples)
    spoken = F.log_softmax(model(x), dim=-1).transpose(0, 1)  # [T, B, C]
    return F.ctc_loss(
        spoken,
        torch.tensor([number for target in targets for number in target]),
        torch.from_numpy(tokens.lengths[samples]),
        torch.tensor([len(target) for target in targets]),
        blank=BLANK,
    )


@torch.no_grad()
def _errors(
    model: nn.Linear,
    tokens: LayerTokens,
    texts: Sequence[str],
    speller: _Speller,
    samples: np.ndarray,
) -> np.ndarray:
    """Edits between what is told and the transcript of each sample, int64."""
    found = []
    for start in range(0, len(samples), BATCH):
        block = samples[start : start + BATCH]
        best = model(tokens.batch(block)[0]).argmax(dim=-1).cpu().numpy()
        for row, sample in zip(best, block, strict=True):
            told = speller.text(row[: tokens.lengths[sample]])
            found.append(edits(told, texts[sample]))
    return np.array(found, dtype=np.int64)
