"""For the tests of tokenizers: text to train on, tokenizers of others, and much odd text."""

import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors, trainers

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
WHITE_SPACE = [chr(code) for code in range(0x110000) if chr(code).isspace()] + ["\0"]
MARKS = [chr(code) for code in range(0x300, 0x370)]
WIDE = [chr(code) for code in (*range(0xFF01, 0xFF5F), *range(0xFB00, 0xFB07), 0xB2, 0x2460)]
CONTROLS = [chr(code) for code in (*range(32), *range(0x7F, 0xA0), 0xAD, 0x200B, 0xFEFF)]
EMOJI = [
    "\U0001f600",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "\U0001f1e9\U0001f1ea",
    "\u2764\ufe0f",
    "\U0001f44d\U0001f3fd",
    "1\ufe0f\u20e3",
]
EDGES = ["", " ", "  ", "\n", "\r\n", "\0", "\u3000", "\u2581", "\u2581\u2581 \u2581", "a"]
EDGES += [" \u2581 a \u2581 ", "-" * 50, "a" * 300, "\U0010fffd", "\ufeffa", "e\u0301", "\u0301"]
LITERAL = ["<mask>", " <mask> ", "<mask><mask>", "<s></s>", "</s>", "<pad>", "a<unk>b", "<MASK>"]


def corpus(count: int = 400) -> list[str]:
    """Passages of invented words, the same at every call."""
    rng = np.random.default_rng(0)
    return [_sentence(rng) for _ in range(count)]


def _word(rng: np.random.Generator) -> str:
    syllables = ["ba", "de", "ki", "lo", "mu", "na", "sh", "st", "r\u00e9", "\u00df", "\u4e2d", "x"]
    # a syllable twice would make pieces such as "kiki", and "kiki" + "ki" as good as "ki" + "kiki"
    return "".join(rng.choice(syllables, int(rng.integers(1, 5)), replace=False))


def _sentence(rng: np.random.Generator) -> str:
    ends = [", ", " ", " ", " ", "-", ". ", "' 12 ", " <a> "]
    return "".join(_word(rng) + str(rng.choice(ends)) for _ in range(int(rng.integers(3, 12))))


def _with(parts: Sequence[str]) -> Callable[[np.random.Generator], str]:
    """Words with some of ``parts`` between them, at the ends, or alone."""

    def make(rng: np.random.Generator) -> str:
        between = ["", " ", "  ", *(str(part) for part in rng.choice(parts, 4))]
        chosen = [between[i] for i in rng.integers(len(between), size=int(rng.integers(1, 12)))]
        return "".join(_word(rng) + part if rng.random() < 0.6 else part for part in chosen)

    return make


def _anything(rng: np.random.Generator) -> str:
    end = rng.choice([0x80, 0x250, 0x3000, 0x110000])
    codes = rng.integers(1, end, size=int(rng.integers(20)))
    return "".join(chr(code) for code in codes if not 0xD800 <= code < 0xE000)


def odd_strings(count: int = 250) -> list[str]:
    """``count`` of each of nine kinds and the edges, without special tokens."""
    rng = np.random.default_rng(1)
    kinds = [_with(parts) for parts in (WHITE_SPACE, MARKS, WIDE, EMOJI, CONTROLS)]
    kinds += [
        _with(["\u2581", "\u2581\u2581", " \u2581", "\u2581 "]),
        _with([" ", "   ", " " * 17]),
    ]
    kinds += [_sentence, _anything]
    return EDGES + [make(rng) for make in kinds for _ in range(count)]


def strings_with_special_tokens(count: int = 250) -> list[str]:
    rng = np.random.default_rng(2)
    make = _with([*SPECIAL, "<S>", "<mask", "pad>"])
    return LITERAL + [make(rng) for _ in range(count)]


def train_sentencepiece(passages: Iterable[str] | None = None, **options: Any) -> bytes:
    """A SentencePiece model of 300 pieces or fewer with RoBERTa's ids."""
    model = io.BytesIO()
    given: dict[str, Any] = {
        "vocab_size": 300,
        "hard_vocab_limit": False,
        "model_type": "unigram",
        "normalization_rule_name": "identity",
        "bos_id": 0,
        "pad_id": 1,
        "eos_id": 2,
        "unk_id": 3,
        "control_symbols": ["<mask>"],
        "required_chars": "</>adekmnpsu",
        "num_threads": 1,
        "minloglevel": 2,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus() if passages is None else passages),
        model_writer=model,
        **(given | options),
    )
    return model.getvalue()


def byte_level(path: Path, mask: str = "<mask>", add_prefix_space: bool = False) -> Path:
    """Write a ``tokenizer.json`` as published for RoBERTa: byte pairs, and the mask comes last."""
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=SPECIAL[:4],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(corpus(), trainer)
    made.add_special_tokens([AddedToken(mask, lstrip=True, special=True, normalized=False)])
    made.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), add_prefix_space=add_prefix_space
    )
    made.save(str(path))
    return path
