"""Text to token ids by a ``tokenizer.json``, as transformers' AutoTokenizer does it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers

from selfdistill.errors import UserError
from selfdistill.modalities.text.roberta_json import convert_roberta, has_roberta_files
from selfdistill.modalities.text.sentencepiece_json import SPACE, convert
from selfdistill.modalities.text.words import WordIds, word_ids

BOS_ID, PAD_ID, EOS_ID, UNK_ID = range(4)
BOS, PAD, EOS, UNK, MASK = SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
MODEL_FILE = "tokenizer.model"
"""As SentencePiece trained it."""
TOKENIZER_FILE = "tokenizer.json"
"""What text goes through."""


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """A ``tokenizer.json`` in RoBERTa's layout; made by ``load_tokenizer``.

    Attributes:
        content: of the file.
        path: named where something is wrong with it.
        vocab_size: ids, special tokens included.
        mask_id: id of ``<mask>``.
        unk_id: id of ``<unk>``.
        special_ids: of all special tokens.
        parsing: takes the spelling of a special token for the token.
        literal: takes it for text.
        words: the same word by word; None: its pieces reach from one word into the next.
    """

    content: str
    path: Path
    vocab_size: int
    mask_id: int
    unk_id: int
    special_ids: frozenset[int]
    parsing: tokenizers.Tokenizer
    literal: tokenizers.Tokenizer
    words: WordIds | None

    def __reduce__(self) -> tuple[Any, ...]:
        # a pickled tokenizers.Tokenizer forgets encode_special_tokens
        return parse_tokenizer, (self.content, self.path)

    def encode(self, text: str, max_tokens: int) -> list[int]:
        """Ids of ``<s> text </s>``, those before ``</s>`` cut to ``max_tokens - 1``.

        This is what AutoTokenizer gives with truncation=True and max_length=max_tokens.
        """
        ids = self.parsing.encode(text).ids
        return ids if len(ids) <= max_tokens else [*ids[: max_tokens - 1], EOS_ID]

    def count(self, text: str) -> int:
        """Ids of ``<s> text </s>``."""
        return len(self.parsing.encode(text).ids)

    def encode_literally(self, text: str) -> list[int]:
        """Ids of the text without ``<s>`` and ``</s>``, and with no special token but ``<unk>``."""
        if self.words is not None and SPACE not in text:
            return self.words.encode(text)
        ids = self.literal.encode(text, add_special_tokens=False).ids
        # a unigram model that has no piece for "<" finds nothing better than the token
        return [self.unk_id if token in self.special_ids else token for token in ids]

    def is_same_as(self, other: "Tokenizer") -> bool:
        """Whether the files say the same, however they are written."""
        return bool(self.parsing.to_str() == other.parsing.to_str())


def load_tokenizer(path: Path) -> Tokenizer:
    """Read a ``tokenizer.json``; where there is none, the ``vocab.json`` and ``merges.txt`` of
    RoBERTa that lie beside its place.

    Raises:
        UserError: there is neither, or it has not RoBERTa's layout, see ``parse_tokenizer``.
    """
    if not path.exists() and has_roberta_files(path.parent):
        return parse_tokenizer(convert_roberta(path.parent), path)
    try:
        content = _read(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"input.tokenizer: {path} is no tokenizer.json ({error})") from error
    return parse_tokenizer(content, path)


def read_tokenizer(path: Path) -> Tokenizer:
    """Read a ``tokenizer.json``, or convert a SentencePiece model (any other suffix).

    Raises:
        UserError: it is neither, has another layout, or cannot be converted.
    """
    if path.suffix == ".json":
        return load_tokenizer(path)
    return parse_tokenizer(convert(_read(path), path, SPECIAL_TOKENS), path)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(
            f"input.tokenizer: cannot read {path}: {error.strerror}; name a tokenizer.json or a "
            "SentencePiece .model, or leave the key empty"
        ) from error


def parse_tokenizer(content: str, path: Path) -> Tokenizer:
    """A tokenizer from the content of its file.

    Raises:
        UserError: damaged; ``<s>``, ``<pad>``, ``</s>`` are not 0, 1, 2; no ``<unk>`` or
            ``<mask>``; or a text is not put between ``<s>`` and ``</s>``.
    """
    parsing, literal = _build(content, path), _build(content, path)
    literal.encode_special_tokens = True
    ids = {t.content: i for i, t in parsing.get_added_tokens_decoder().items() if t.special}
    found = tuple(ids.get(token) for token in (BOS, PAD, EOS))
    if found != (BOS_ID, PAD_ID, EOS_ID):
        raise UserError(
            f"input.tokenizer: {path} has the ids {found} for the special tokens {BOS}, {PAD}, "
            f"{EOS}; they must be {(BOS_ID, PAD_ID, EOS_ID)}"
        )
    for token in (UNK, MASK):
        if token not in ids:
            raise UserError(
                f"input.tokenizer: {path} has no special token {token}; name a tokenizer made "
                "with one"
            )
    framed = parsing.encode("a").ids
    added = parsing.num_special_tokens_to_add(False)
    if added != 2 or (framed[0], framed[-1]) != (BOS_ID, EOS_ID):
        raise UserError(
            f"input.tokenizer: {path} does not put a text between {BOS} and {EOS}; its "
            "post_processor must"
        )
    vocab_size = max(parsing.get_vocab().values()) + 1
    special_ids = frozenset(ids.values())
    return Tokenizer(
        content=content,
        path=path,
        vocab_size=vocab_size,
        mask_id=ids[MASK],
        unk_id=ids[UNK],
        special_ids=special_ids,
        parsing=parsing,
        literal=literal,
        words=word_ids(literal, special_ids, ids[UNK]),
    )


def _build(content: str, path: Path) -> tokenizers.Tokenizer:
    try:
        built = tokenizers.Tokenizer.from_str(content)
    except Exception as error:  # the library knows no other class
        raise UserError(
            f"input.tokenizer: {path} is damaged, or no tokenizer.json ({error}); restore it, or "
            "name another"
        ) from error
    built.no_padding()
    built.no_truncation()
    return built


def tokenizer_config(tokenizer: Tokenizer, max_tokens: int) -> dict[str, Any]:
    """The content of the ``tokenizer_config.json`` beside the ``tokenizer.json``.

    Everything about the special tokens but their names is read from the ``tokenizer.json``.

    Args:
        tokenizer: that of the ``tokenizer.json``.
        max_tokens: of one input, special tokens included.
    """
    fields = {
        "tokenizer_class": "PreTrainedTokenizerFast",  # any other is rebuilt by transformers 5
        "bos_token": BOS,
        "cls_token": BOS,
        "eos_token": EOS,
        "sep_token": EOS,
        "unk_token": UNK,
        "pad_token": PAD,
        "mask_token": MASK,
        "model_max_length": max_tokens,
        "padding_side": "right",
        "truncation_side": "right",
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
    }
    # transformers 4 writes its own default over the file's
    pre_tokenizer = json.loads(tokenizer.content).get("pre_tokenizer") or {}
    if "add_prefix_space" in pre_tokenizer:
        fields["add_prefix_space"] = pre_tokenizer["add_prefix_space"]
    return fields
