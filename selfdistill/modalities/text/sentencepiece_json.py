"""SentencePiece models as ``tokenizer.json``, the format of Hugging Face's ``tokenizers``.

The ids are those that SentencePiece gives. Two things cannot be had exactly: which of two ways to
cut a text comes first when their scores are equal (unigram only; the pieces are the same), and a
normaliser's table at combining marks, because ``tokenizers`` applies it per grapheme. Models with
the identity normaliser have no such table.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, processors

from selfdistill.errors import UserError
from selfdistill.modalities.text.sentencepiece_model import Kind, SentencePieceModel, parse_model

SPACE = "\u2581"
"""How SentencePiece spells a space."""
WHITE_SPACE = (
    "\0\t\n\x0b\x0c\r\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006"
    "\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
)
"""What ``collapse`` takes for a space beside the space itself."""
UNREACHABLE = -1000.0
"""Score of the pieces that no spelling must become."""
ALL = 1_000_000


def collapse(text: str) -> str:
    """One space for every run of white space (as ``str.split`` has it) and NULs, none at the ends.

    Training text goes through this; in a ``tokenizer.json`` the normaliser does the same.
    """
    return " ".join(words_of(text))


def words_of(text: str) -> list[str]:
    """What stands between the white space and NULs of a text."""
    return text.replace("\0", " ").split()


def convert(content: bytes, path: Path, special_tokens: Sequence[str]) -> str:
    """The content of a ``tokenizer.json`` that gives a model's ids between ``<s>`` and ``</s>``.

    White space that an identity normaliser leaves and that the model has no piece for counts as a
    space; SentencePiece itself would make it ``<unk>``.

    Args:
        content: of the ``.model`` file.
        path: named where something is wrong with it.
        special_tokens: pieces that are tokens where a text spells them, among them ``<s>`` and
            ``</s>``.

    Raises:
        UserError: it is no SentencePiece model, lacks a special token, or cannot be expressed.
    """
    try:
        model = parse_model(content)
    except ValueError as error:
        raise UserError(
            f"input.tokenizer: {path} is no SentencePiece model ({error}); name another, or leave "
            "the key empty to train one"
        ) from error
    in_the_way = obstacles(model, special_tokens)
    if in_the_way:
        raise UserError(
            f"input.tokenizer: {path} cannot be written as tokenizer.json: "
            f"{'; '.join(in_the_way)}. Name another, or leave the key empty to train one"
        )
    pieces = {piece.text for piece in model.pieces}
    missing = [token for token in special_tokens if token not in pieces]
    if missing:
        raise UserError(
            f"input.tokenizer: {path} has no {', '.join(missing)}; train it with bos_id=0, "
            "pad_id=1, eos_id=2, unk_id=3 and control_symbols=['<mask>']"
        )
    return _written(model, special_tokens)


def obstacles(model: SentencePieceModel, special_tokens: Sequence[str]) -> list[str]:
    """What of a model a ``tokenizer.json`` cannot express, in words."""
    symbols = [
        piece.text
        for piece in model.pieces
        if piece.kind == Kind.USER_DEFINED and piece.text not in special_tokens
    ]
    unused = [piece.text for piece in model.pieces if piece.kind == Kind.UNUSED]
    found = {
        "its type is neither unigram nor bpe": model.model_type not in (1, 2),
        "it puts spaces behind words (treat_whitespace_as_suffix)": (
            model.treat_whitespace_as_suffix
        ),
        "it keeps spaces as they are (escape_whitespaces=false)": not model.escape_whitespaces,
        f"it has user-defined symbols ({_some(symbols)})": symbols,
        f"it has unused pieces ({_some(unused)})": unused,
    }
    return [words for words, is_there in found.items() if is_there]


def _some(texts: Sequence[str]) -> str:
    return ", ".join(map(repr, texts[:3])) + (", ..." if len(texts) > 3 else "")


def _written(model: SentencePieceModel, special_tokens: Sequence[str]) -> str:
    made = tokenizers.Tokenizer(_bpe(model) if model.model_type == 2 else _unigram(model))
    made.normalizer = normalizers.Sequence(list(_normalizers(model)))
    made.decoder = decoders.Sequence(list(_decoders(model)))
    made.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in special_tokens]
    )
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[(token, made.token_to_id(token)) for token in ("<s>", "</s>")],
    )
    return str(made.to_str(pretty=True))


def _unknown(model: SentencePieceModel) -> int:
    return next(i for i, piece in enumerate(model.pieces) if piece.kind == Kind.UNKNOWN)


def _unigram(model: SentencePieceModel) -> models.Unigram:
    # SentencePiece matches normal pieces only, this one all
    vocab = [
        (piece.text, piece.score if piece.kind == Kind.NORMAL else UNREACHABLE)
        for piece in model.pieces
    ]
    return models.Unigram(vocab, _unknown(model), model.byte_fallback)


def _bpe(model: SentencePieceModel) -> models.BPE:
    """SentencePiece merges the neighbours that make the piece with the highest score."""
    normal = {
        piece.text: (-piece.score, number)
        for number, piece in enumerate(model.pieces)
        if piece.kind == Kind.NORMAL
    }
    splits = [
        (rank, at, (text[:at], text[at:]))
        for text, rank in normal.items()
        for at in range(1, len(text))
        if text[:at] in normal and text[at:] in normal
    ]
    return models.BPE(
        vocab={piece.text: number for number, piece in enumerate(model.pieces)},
        merges=[halves for _, _, halves in sorted(splits)],
        unk_token=model.pieces[_unknown(model)].text,
        fuse_unk=True,
        byte_fallback=model.byte_fallback,
    )


def _normalizers(model: SentencePieceModel) -> Iterator[normalizers.Normalizer]:
    if model.precompiled_charsmap:
        yield normalizers.Precompiled(model.precompiled_charsmap)
    if model.remove_extra_whitespaces:
        unknown = _white_space_without_a_piece(model)
        if unknown:
            codes = "".join(rf"\x{{{ord(character):04x}}}" for character in unknown)
            yield normalizers.Replace(Regex(f"[{codes}]"), " ")
        # not ^ and $, which match at line ends
        yield normalizers.Replace(Regex(r"\A +"), "")
        # looking back keeps the time linear in a run of spaces that is not at the end
        yield normalizers.Replace(Regex(rf"(?<![ {SPACE}])[ {SPACE}]+\z"), "")
        yield normalizers.Replace(Regex(" {2,}"), " ")
    if model.add_dummy_prefix:
        yield normalizers.Prepend(SPACE)
    yield normalizers.Replace(" ", SPACE)


def identity_normalizer(byte_fallback: bool) -> normalizers.Normalizer:
    """That of a model which has the identity normaliser and no piece with white space."""
    bare = SentencePieceModel(
        pieces=[],
        model_type=1,
        treat_whitespace_as_suffix=False,
        byte_fallback=byte_fallback,
        precompiled_charsmap=b"",
        add_dummy_prefix=True,
        remove_extra_whitespaces=True,
        escape_whitespaces=True,
    )
    return normalizers.Sequence(list(_normalizers(bare)))


def _white_space_without_a_piece(model: SentencePieceModel) -> list[str]:
    if model.precompiled_charsmap or model.byte_fallback:
        return []
    known = {character for piece in model.pieces for character in piece.text}
    return [character for character in WHITE_SPACE if character not in known]


def _decoders(model: SentencePieceModel) -> Iterator[decoders.Decoder]:
    yield decoders.Replace(SPACE, " ")
    if model.byte_fallback:
        yield decoders.ByteFallback()
    yield decoders.Fuse()
    if model.remove_extra_whitespaces:
        yield decoders.Strip(" ", ALL, 0)
    elif model.add_dummy_prefix:
        yield decoders.Strip(" ", 1, 0)
