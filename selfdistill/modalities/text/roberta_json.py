"""RoBERTa's byte-level BPE as ``tokenizer.json``, for repositories older than that format."""

import json
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors

from selfdistill.errors import UserError

VOCAB, MERGES = "vocab.json", "merges.txt"
ADDED = "added_tokens.json"
"""Where there is one: tokens that somebody added to the published ones, and their ids."""


def has_roberta_files(folder: Path) -> bool:
    return (folder / VOCAB).is_file() and (folder / MERGES).is_file()


def convert_roberta(folder: Path) -> str:
    """The content of a ``tokenizer.json`` that does what ``vocab.json``, ``merges.txt`` and
    ``added_tokens.json`` say.

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
        added = _added(folder)
    except Exception as error:  # the library knows no other class
        raise UserError(
            f"input.tokenizer: {folder / VOCAB}, {MERGES} or {ADDED} is damaged ({error}); fetch "
            "them again"
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
    new = [
        token for token in sorted(added, key=added.__getitem__) if made.token_to_id(token) is None
    ]
    made.add_tokens([AddedToken(token, normalized=False) for token in new])
    moved = [token for token, number in added.items() if made.token_to_id(token) != number]
    if moved:
        raise UserError(
            f"input.tokenizer: the ids that {folder / ADDED} gives to {', '.join(moved)} do not "
            f"follow those of {VOCAB}; fetch both again"
        )
    return str(made.to_str(pretty=True))


def _added(folder: Path) -> dict[str, int]:
    path = folder / ADDED
    if not path.is_file():
        return {}
    found = json.loads(path.read_text(encoding="utf-8"))
    return {str(token): int(number) for token, number in found.items()}


def _is_comment(line: str) -> bool:
    return not line or line.startswith("#version")
