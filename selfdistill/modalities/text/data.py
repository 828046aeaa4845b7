"""Text bytes to token ids, random crops, and token masks."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from selfdistill.config import RunConfig
from selfdistill.data.pipeline import InputPipeline
from selfdistill.data.shards import ShardSet, resolve
from selfdistill.errors import BadSample, UserError
from selfdistill.masking import span_masks
from selfdistill.modalities.text.tokenizer import (
    BOS_ID,
    EOS_ID,
    PAD_ID,
    load_tokenizer,
    train_tokenizer,
)
from selfdistill.types import Batch, Masks

EXTENSIONS = ("txt", "json")


def read_passage(sample: Mapping[str, bytes]) -> str:
    """The text of a sample: its ``txt`` member, or ``text`` of its ``json`` member.

    Raises:
        BadSample: no UTF-8, no such entry, or nothing but white space.
    """
    extension = next(e for e in EXTENSIONS if e in sample)
    try:
        text = sample[extension].decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadSample("text is not UTF-8", str(error)) from error
    if extension == "json":
        try:
            text = json.loads(text)["text"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise BadSample("json without a text entry", repr(error)) from error
        if not isinstance(text, str):
            raise BadSample("json without a text entry", f"text is a {type(text).__name__}")
        if any("\ud800" <= c <= "\udfff" for c in text):
            raise BadSample("text is not UTF-8", "half of a surrogate pair")
    text = " ".join(text.replace("\0", " ").split())
    if not text:
        raise BadSample("empty text")
    return text


class TextPipeline(InputPipeline):
    """Examples are int64 [T] token ids between ``<s>`` and ``</s>``."""

    extensions = EXTENSIONS
    baseline_name = "bag of tokens"

    def __init__(self, config: RunConfig) -> None:
        self.max_tokens = config.input.max_tokens
        self.mask = config.mask
        self.masked_only_teacher = config.compat.masked_only_teacher
        self.vocab_size = config.encoder.vocab_size
        self.tokenizer = load_tokenizer(Path(config.input.tokenizer))

    def decode(self, sample: Mapping[str, bytes]) -> np.ndarray:
        """The passage's token ids without special ones."""
        ids = np.array(self.tokenizer.encode(read_passage(sample)), dtype=np.int64)
        if not len(ids):
            raise BadSample("text without tokens")
        return ids

    def augment(self, raw: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        start = int(rng.integers(max(len(raw) - self.max_tokens + 2, 0) + 1))
        return self._frame(raw[start:])

    def plain(self, raw: np.ndarray) -> np.ndarray:
        return self._frame(raw)

    def _frame(self, ids: np.ndarray) -> np.ndarray:
        return np.concatenate([[BOS_ID], ids[: self.max_tokens - 2], [EOS_ID]])

    def collate(
        self, examples: Sequence[np.ndarray], mask_keys: np.ndarray | None, keys: Sequence[str] = ()
    ) -> Batch:
        lengths = np.array([len(example) for example in examples], dtype=np.int64)
        inputs = np.full((len(examples), lengths.max()), PAD_ID, dtype=np.int64)
        for row, example in zip(inputs, examples, strict=True):
            row[: len(example)] = example
        masks, teacher_inputs = None, None
        if mask_keys is not None:
            masked = span_masks(
                mask_keys,
                lengths,
                int(lengths.max()),
                prob=self.mask.mask_prob,
                length=self.mask.mask_length,
                cut_at_end=True,
            )
            masks = Masks.from_bool(masked)
            if self.masked_only_teacher:
                teacher_inputs = torch.from_numpy(np.where(masked, inputs, PAD_ID))
        padded = self.masked_only_teacher or bool((lengths < lengths.max()).any())
        return Batch(
            torch.from_numpy(inputs),
            torch.from_numpy(lengths) if padded else None,
            masks,
            teacher_inputs,
            keys,
        )

    def baseline(self, example: np.ndarray) -> np.ndarray:
        """Bag of tokens, [vocabulary]: their shares in the passage."""
        counts = np.bincount(example[1:-1], minlength=self.vocab_size)
        return (counts / max(counts.sum(), 1)).astype(np.float32)


def prepare(config: RunConfig) -> RunConfig:
    """Train the tokenizer into the run folder if the config names none, and name it."""
    path = Path(config.input.tokenizer or Path(config.run_dir, "tokenizer.model"))
    if not config.input.tokenizer and not path.exists():
        shards = ShardSet(resolve(config.data.train), EXTENSIONS)
        train_tokenizer(_passages(shards), config.encoder.vocab_size, path)
    pieces = load_tokenizer(path).get_piece_size()
    if pieces != config.encoder.vocab_size:
        raise UserError(
            f"encoder.vocab_size: {config.encoder.vocab_size}, but the tokenizer {path} has "
            f"{pieces} pieces; set it to {pieces}"
        )
    return replace(config, input=replace(config.input, tokenizer=str(path)))


def _passages(shards: ShardSet) -> Iterator[str]:
    for index in range(len(shards)):
        try:
            yield read_passage(shards.read(index)[1])
        except BadSample:
            continue  # counted when training reads it
