"""SentencePiece models that transformers' tokenizers can reproduce exactly."""

import io
from collections.abc import Iterable
from pathlib import Path

import sentencepiece

from selfdistill.errors import UserError

BOS_ID, PAD_ID, EOS_ID, UNK_ID, MASK_ID = range(5)


def train_tokenizer(passages: Iterable[str], vocab_size: int, path: Path) -> None:
    """Train a unigram model and write it atomically.

    The identity normaliser, and ``<mask>`` as a control symbol, are what keeps an export exact;
    the required characters make the spelling of the control symbols ordinary text.

    Raises:
        UserError: there is too little text for ``vocab_size`` pieces.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(passages),
            model_writer=model,
            vocab_size=vocab_size,
            model_type="unigram",
            normalization_rule_name="identity",
            bos_id=BOS_ID,
            pad_id=PAD_ID,
            eos_id=EOS_ID,
            unk_id=UNK_ID,
            control_symbols=["<mask>"],
            required_chars="</>adekmnpsu",
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise UserError(
            f"encoder.vocab_size: SentencePiece could not make {vocab_size} pieces of the text in "
            f"data.train ({str(error).strip().splitlines()[-1]}); lower it or add text"
        ) from error
    temporary = path.with_name(path.name + ".writing")
    temporary.write_bytes(model.getvalue())
    temporary.replace(path)


def load_tokenizer(path: Path) -> sentencepiece.SentencePieceProcessor:
    """Read a model and check its special ids.

    Raises:
        UserError: no model, or one with other ids for ``<s>``, ``<pad>``, ``</s>``.
    """
    try:
        tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"input.tokenizer: {path} is no SentencePiece model; give another, "
            "or leave the key empty to train one"
        ) from error
    found = (tokenizer.bos_id(), tokenizer.pad_id(), tokenizer.eos_id())
    if found != (BOS_ID, PAD_ID, EOS_ID):
        raise UserError(
            f"input.tokenizer: {path} has the ids {found} for <s>, <pad>, </s>; "
            f"they must be {(BOS_ID, PAD_ID, EOS_ID)}"
        )
    return tokenizer
