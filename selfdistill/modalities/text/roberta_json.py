"""RoBERTa's byte-level BPE as ``tokenizer.json``, for repositories older than that format."""

import json
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors

from selfdistill.errors import UserError

VOCAB, MERGES = "vocab.json", "merges.txt"


def has_roberta_files(folder: Path) -> bool:
    return (folder / VOCAB).is_file() and (folder / MERGES).is_file()


def convert_roberta(folder: Path) -> str:
    """The content of a ``tokenizer.json`` that does what ``vocab.json`` and ``merges.txt`` say.

    Raises:
        UserError: one of them is damaged.
    """
    try:
        vocab = json.loads((folder / VOCAB).read_text(encoding="utf-8"))
        lines = (folder / MERGES).read_text(encoding="utf-8").split("\n")
        merges = [
            (left, right)
            for left, right in (line.split(" ") for line in lines if not _is_comment(line))
        ]
        made = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges))
        bos, eos = vocab["<s>"], vocab["</s>"]
    except Exception as error:  # the library knows no other class
        raise UserError(
            f"input.tokenizer: {folder / VOCAB} or {MERGES} is damaged ({error}); fetch them again"
        ) from error
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.RobertaProcessing(
        ("</s>", eos), ("<s>", bos), add_prefix_space=False
    )
    made.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token in ("<s>", "<pad>", "</s>", "<unk>")
        ]
        # the mask takes the space in front of it, or the next word's would be lost
        + [AddedToken("<mask>", special=True, lstrip=True, normalized=False)]
    )
    return str(made.to_str(pretty=True))


def _is_comment(line: str) -> bool:
    return not line or line.startswith("#version")
