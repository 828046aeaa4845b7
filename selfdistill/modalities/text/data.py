"""Text bytes to token ids, random crops, and token masks."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from selfdistill.config import RunConfig
from selfdistill.data.pipeline import InputPipeline, padded
from selfdistill.data.shards import ShardSet, training_shards
from selfdistill.durable import write_atomically
from selfdistill.errors import BadSample, UserError
from selfdistill.masking import clone_keys, random_tokens, span_masks
from selfdistill.modalities.text.sampling import SAMPLED_BYTES
from selfdistill.modalities.text.sentencepiece_json import collapse
from selfdistill.modalities.text.tokenizer import (
    BOS_ID,
    EOS_ID,
    MODEL_FILE,
    PAD_ID,
    TOKENIZER_FILE,
    Tokenizer,
    load_tokenizer,
    read_tokenizer,
)
from selfdistill.modalities.text.training import train_tokenizer
from selfdistill.modalities.text.values import as_text, entry
from selfdistill.types import Batch, Masks

EXTENSIONS = ("txt", "json")


def read_passage(sample: Mapping[str, bytes]) -> str:
    """The text of a sample as it stands: its ``txt`` member, or ``text`` of its ``json`` member.

    Raises:
        BadSample: no UTF-8, no such entry, or nothing but white space.
    """
    extension = next(e for e in EXTENSIONS if e in sample)
    try:
        text = sample[extension].decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadSample("text is not UTF-8", str(error)) from error
    if extension == "json":
        text = as_text(entry(text, "text"))
    if not collapse(text):
        raise BadSample("empty text")
    return text


class TextPipeline(InputPipeline):
    """Examples are int64 [T] token ids between ``<s>`` and ``</s>``.

    In training the spelling of a special token is text, as a web page may well have ``<s>`` in it;
    in evaluation it is the token, as for transformers.
    """

    extensions = EXTENSIONS
    baseline_name = "bag of tokens"

    def __init__(self, config: RunConfig) -> None:
        self.max_tokens = config.input.max_tokens
        self.mask = config.mask
        self.masked_only_teacher = config.compat.masked_only_teacher
        self.vocab_size = config.encoder.vocab_size
        self.tokenizer = load_tokenizer(Path(config.input.tokenizer).expanduser())

    def decode(self, sample: Mapping[str, bytes]) -> str:
        return read_passage(sample)

    def augment(self, raw: str, rng: np.random.Generator) -> np.ndarray:
        ids = self.tokenizer.encode_literally(raw)
        if not ids:
            raise BadSample("text without tokens")
        start = int(rng.integers(max(len(ids) - self.max_tokens + 2, 0) + 1))
        kept = ids[start : start + self.max_tokens - 2]
        return np.array([BOS_ID, *kept, EOS_ID], dtype=np.int64)

    def plain(self, raw: str) -> np.ndarray:
        ids = self.tokenizer.encode(raw, self.max_tokens)
        # runs have a row for every token; a folder of transformers may lack those of added tokens
        if max(ids) >= self.vocab_size:
            raise BadSample(
                "a token that the weights have no row for", f"{max(ids)}, of {self.vocab_size} rows"
            )
        return np.array(ids, dtype=np.int64)

    def is_cropped(self, raw: str) -> bool:
        return self.tokenizer.count(raw) > self.max_tokens

    def collate(
        self, examples: Sequence[np.ndarray], mask_keys: np.ndarray | None, keys: Sequence[str] = ()
    ) -> Batch:
        inputs, lengths = padded(examples, PAD_ID)
        masks = None if mask_keys is None else self._masks(lengths, mask_keys)
        teacher_inputs = None
        if self.masked_only_teacher and masks is not None:
            teacher_inputs = torch.from_numpy(np.where(masks.masked, inputs, PAD_ID))
        has_padding = self.masked_only_teacher or bool((lengths < lengths.max()).any())
        return Batch(
            torch.from_numpy(inputs),
            torch.from_numpy(lengths) if has_padding else None,
            masks,
            teacher_inputs,
            keys,
        )

    def _masks(self, lengths: np.ndarray, keys: np.ndarray) -> Masks:
        mask, total = self.mask, int(lengths.max())
        keys, lengths = clone_keys(keys, mask.num_masks), lengths.repeat(mask.num_masks)
        if mask.kind == "tokens":
            masked = random_tokens(keys, lengths, total, prob=mask.mask_prob)
        else:
            masked = span_masks(
                keys, lengths, total, prob=mask.mask_prob, length=mask.mask_length, cut_at_end=True
            )
        return Masks.from_bool(masked, np.arange(total) < lengths[:, None])

    def baseline(self, example: np.ndarray) -> np.ndarray:
        """Bag of tokens, [vocabulary]: their shares in the passage."""
        counts = np.bincount(example[1:-1], minlength=self.vocab_size)
        return (counts / max(counts.sum(), 1)).astype(np.float32)


def prepare(config: RunConfig) -> RunConfig:
    """See to it that the run's folder holds the run's tokenizer, and name that one.

    It is the one that lies there already, else ``input.tokenizer``, else one that is trained.

    Raises:
        UserError: ``input.tokenizer`` cannot be used, or is another than the one that lies there;
            or the config does not fit the tokenizer.
    """
    folder = Path(config.run_dir)
    path, trained = folder / TOKENIZER_FILE, folder / MODEL_FILE
    named = config.input.tokenizer
    given = read_tokenizer(Path(named).expanduser()) if named else None
    if path.exists():
        if given is not None and not given.is_same_as(load_tokenizer(path)):
            raise UserError(
                f"input.tokenizer: {given.path} differs from the run's own tokenizer {path}; leave "
                "the key empty to go on with that one, or choose another run_dir"
            )
    elif given is None and not trained.exists():
        shards = training_shards(config.data, EXTENSIONS)
        train_tokenizer(drawn_passages(shards, config.seed), config.encoder.vocab_size, folder)
    else:
        given = given or read_tokenizer(trained)  # killed before it was converted
        _check_fit(config, given)
        write_atomically(path, given.content)
    _check_fit(config, load_tokenizer(path))
    return replace(config, input=replace(config.input, tokenizer=str(path)))


def _check_fit(config: RunConfig, tokenizer: Tokenizer) -> None:
    for key in ("vocab_size", "mask_id"):
        found, wanted = getattr(config.encoder, key), getattr(tokenizer, key)
        # tables of weights that exist are often longer than their tokenizer, up to a round number
        spare = key == "vocab_size" and config.init_from and found > wanted
        if found != wanted and not spare:
            raise UserError(
                f"encoder.{key}: {found}, but that of the tokenizer {tokenizer.path} is {wanted}; "
                f"set it to {wanted}"
            )


def drawn_passages(shards: ShardSet, seed: int, most: int = SAMPLED_BYTES) -> list[str]:
    """Passages from all over the shards for training a tokenizer, in their order: all of them, or
    some that were drawn and have more than ``most`` bytes together.

    No shard is gone to for one passage alone, which may mean to fetch or to unpack all of it: as
    many as may be wanted are read in their order, and as many more as are found to be missing.
    """
    found: dict[int, str] = {}
    drawn = np.random.default_rng(seed).permutation(len(shards))
    ends = np.cumsum(shards.member_bytes()[drawn])  # no text has more bytes than its members
    size = first = before = 0
    bar = tqdm(None, "reading text for the tokenizer", len(shards), disable=None)
    while size <= most and first < len(drawn):
        last = int(np.searchsorted(ends, before + most - size, side="right")) + 1
        for index in sorted(drawn[first:last].tolist()):
            bar.update()
            try:
                found[index] = read_passage(shards.read(index)[1])
            except BadSample:
                continue  # counted when training reads it
            size += len(found[index].encode())
        first, before = last, int(ends[min(last, len(ends)) - 1])
    bar.close()
    return [found[index] for index in sorted(found)]
