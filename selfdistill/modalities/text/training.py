"""Training a tokenizer with SentencePiece."""

import io
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import sentencepiece
import tokenizers

from selfdistill.durable import write_atomically
from selfdistill.errors import UserError
from selfdistill.modalities.text.sentencepiece_json import (
    WHITE_SPACE,
    collapse,
    convert,
    identity_normalizer,
)
from selfdistill.modalities.text.sentencepiece_model import without_rule_file
from selfdistill.modalities.text.tokenizer import (
    BOS_ID,
    EOS_ID,
    MASK,
    MODEL_FILE,
    PAD_ID,
    SPECIAL_TOKENS,
    TOKENIZER_FILE,
    UNK_ID,
)

_LINE = re.compile(r"\S.{0,998}(?:\s|\Z)|\S{1,999}", re.DOTALL)
"""SentencePiece leaves lines of more than 4,192 bytes out without a word."""


def train_tokenizer(
    passages: Iterable[str],
    vocab_size: int,
    folder: Path,
    *,
    model_type: str = "unigram",
    byte_fallback: bool = False,
    key: str = "encoder.vocab_size",
) -> None:
    """Train a model; write it and its ``tokenizer.json`` into ``folder``, that one last.

    With ``byte_fallback`` the model has a table that makes spaces of all other white space, because
    a line end would become a byte otherwise and take the word behind it its token.

    Args:
        passages: of any length.
        vocab_size: tokens, special ones and bytes included.
        folder: is written to.
        model_type: unigram, or bpe.
        byte_fallback: whether characters without a token become the tokens of their bytes, not
            ``<unk>``.
        key: the name of ``vocab_size`` for the user.

    Raises:
        UserError: there is too little text for ``vocab_size`` pieces, or too many characters.
    """
    try:
        with tempfile.TemporaryDirectory() as scratch:
            rules = _rules(Path(scratch), byte_fallback)
            trained = _trained(passages, vocab_size=vocab_size, model_type=model_type, **rules)
    except RuntimeError as error:
        said = str(error).strip().splitlines()[-1].rpartition("] ")[2]  # behind its own source
        ways = "raise it" if "Increase vocab_size" in said else "lower it or add text"
        raise UserError(
            f"{key}: SentencePiece could not make {vocab_size} pieces of the text ({said}); {ways}"
        ) from error
    path = folder / MODEL_FILE
    content = convert(trained, path, SPECIAL_TOKENS)
    if byte_fallback:
        trained = without_rule_file(trained)
        made = tokenizers.Tokenizer.from_str(content)
        made.normalizer = identity_normalizer(False)  # the same table, but one that is exact
        content = made.to_str(pretty=True)
    write_atomically(path, trained)
    write_atomically(folder / TOKENIZER_FILE, content)


def _rules(scratch: Path, byte_fallback: bool) -> dict[str, Any]:
    if not byte_fallback:
        return {"normalization_rule_name": "identity"}
    table = scratch / "spaces.tsv"
    table.write_text("".join(f"{ord(c):X}\t20\n" for c in WHITE_SPACE if c != "\0"))
    return {"normalization_rule_tsv": str(table), "byte_fallback": True}


def _lines(passages: Iterable[str]) -> Iterator[str]:
    """Passages in parts of less than 1,000 characters, cut at white space where there is any."""
    for passage in passages:
        yield from map(collapse, _LINE.findall(passage))


def _trained(passages: Iterable[str], **options: Any) -> bytes:
    """The identity normaliser, and ``<mask>`` as a control symbol, are what keeps the conversion
    exact; the required characters make the spelling of the control symbols ordinary text."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=_lines(passages),
        model_writer=model,
        bos_id=BOS_ID,
        pad_id=PAD_ID,
        eos_id=EOS_ID,
        unk_id=UNK_ID,
        control_symbols=[MASK],
        required_chars="</>adekmnpsu",
        num_threads=1,
        minloglevel=2,
        **options,
    )
    return model.getvalue()
