"""Text into passages that fill the model's input, with the tokenizer they are counted by."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np

from selfdistill.errors import UserError
from selfdistill.modalities.text.blocks import JSON, PARQUET, PLAIN, Blocks
from selfdistill.modalities.text.config import TextEncoderConfig, TextInputConfig
from selfdistill.modalities.text.documents import Block, Document
from selfdistill.modalities.text.passages import Count, passages
from selfdistill.modalities.text.sampling import draw, texts
from selfdistill.modalities.text.tokenizer import (
    MODEL_FILE,
    TOKENIZER_FILE,
    load_tokenizer,
    read_tokenizer,
)
from selfdistill.modalities.text.training import train_tokenizer
from selfdistill.packing.declaration import (
    PIECE,
    Job,
    Lot,
    Packing,
    Piece,
    Sample,
    Skipped,
    Survey,
    config_value,
    option,
)
from selfdistill.packing.folder import put_beside
from selfdistill.packing.inputs import Inputs
from selfdistill.packing.report import none_left
from selfdistill.packing.workers import Bar

LOT_BYTES = 8 << 20
"""Of text that one worker cuts at a time."""


@dataclass(frozen=True)
class TextOptions:
    """Of ``selfdistill pack text``."""

    max_tokens: int = option(
        TextInputConfig.max_tokens, "longest passage, with <s> and </s> (default 512)"
    )
    no_join: bool = option(
        False, "keep every document apart; else short ones follow each other in one passage"
    )
    documents: Literal["blank", "line", "file"] = option(
        "blank", "what ends a document in .txt files: blank lines (default), each line, the file"
    )
    field: str = option("text", "the column or entry that is the text (default text)")
    tokenizer: str = option(
        "", "a tokenizer.json in RoBERTa's layout, or a SentencePiece .model (default: train one)"
    )
    vocab_size: int = option(
        TextEncoderConfig.vocab_size, "tokens of a tokenizer that is trained (default 50000)"
    )
    model: Literal["unigram", "bpe"] = option("unigram", "its kind (default unigram)")
    no_byte_fallback: bool = option(
        False, "characters it has no token for become <unk>; else the tokens of their bytes"
    )


def check(options: TextOptions) -> None:
    """Refuse passages without a token."""
    if options.max_tokens < 3:
        raise UserError(
            f"--max-tokens: {options.max_tokens} must be 3 or more, for <s>, a token and </s>"
        )


def prepare(job: Job, inputs: Inputs) -> None:
    """Write ``tokenizer.json``, and ``tokenizer.model`` where there is one.

    Raises:
        UserError: the given one cannot be used, or there is no text to train one, or too little.
    """
    options: TextOptions = job.options
    if options.tokenizer:
        path = Path(options.tokenizer)
        try:
            content = read_tokenizer(path).content
        except UserError as error:
            raise UserError(str(error).replace("input.tokenizer:", "--tokenizer:")) from error
        if path.suffix != ".json":
            put_beside(job, MODEL_FILE, path.read_bytes())
        put_beside(job, TOKENIZER_FILE, content)
    elif not (job.beside / TOKENIZER_FILE).exists():
        _train(job, inputs)


def _train(job: Job, inputs: Inputs) -> None:
    options: TextOptions = job.options
    skipped: list[Skipped] = []
    with Bar("drawing text for the tokenizer", inputs.size) as bar:
        drawn = draw(_blocks(job, inputs, bar, skipped), job.seed)
    found = texts(drawn, options.field, skipped)
    first = next(found, None)
    if first is None:
        raise none_left(skipped)
    with Bar("training the tokenizer", 0):
        train_tokenizer(
            chain([first], found),
            options.vocab_size,
            job.beside,
            model_type=options.model,
            byte_fallback=not options.no_byte_fallback,
            key="--vocab-size",
        )


def _blocks(job: Job, inputs: Inputs, bar: Bar, skipped: list[Skipped]) -> Iterator[Block]:
    """The blocks that can be read; what cannot is added to ``skipped``."""
    blocks = Blocks(inputs, job.options.documents, job.options.field)
    before = 0
    for block in blocks:
        bar.skip(blocks.position - before)
        before = blocks.position
        if isinstance(block, Block):
            yield block
        else:
            skipped.append(block)


def lots(job: Job, inputs: Inputs) -> Iterator[Lot]:
    """Blocks that follow each other, some megabytes at a time."""
    blocks = Blocks(inputs, job.options.documents, job.options.field)
    held: list[Block | Skipped] = []
    size = number = before = 0
    for block in blocks:
        held.append(block)
        size += block.size if isinstance(block, Block) else 0
        if size >= LOT_BYTES:
            yield Lot(number, held, blocks.position - before)
            held, size, number, before = [], 0, number + 1, blocks.position
    if held:
        yield Lot(number, held, blocks.position - before)


def survey(job: Job, lot: Lot) -> Survey:
    """The passages of a lot; their texts are the spill."""
    documents: list[Document] = []
    skipped: list[Skipped] = []
    for block in lot.items:
        for entry in block.documents(job.options.field) if isinstance(block, Block) else [block]:
            if isinstance(entry, Document):
                documents.append(entry)
            else:
                skipped.append(entry)
    limit = job.options.max_tokens - 2
    texts = [document.text for document in documents]
    made = passages(texts, limit, _counter(job.beside), not job.options.no_join)
    rows: list[tuple[int, ...]] = []
    spill, parts = bytearray(), Counter[int]()
    for passage in made:
        document, content = documents[passage.document], passage.text.encode()
        start, part = len(spill), parts[passage.document]
        parts[passage.document] += 1
        spill += content
        row = (document.input, lot.number, document.line, part)
        rows.append((*row, start, len(spill), len(content), passage.tokens + 2))
    return Survey(np.array(rows, PIECE), skipped, bytes(spill))


def read(job: Job, piece: Piece) -> Sample:
    """A passage, as its lot's survey kept it."""
    with open(job.spill(piece.lot), "rb") as file:
        file.seek(piece.start)
        return Sample({"txt": file.read(piece.stop - piece.start)}, piece.length)


def settings(job: Job) -> list[str]:
    """The keys of ``pretrain`` that the tokenizer and the passages ask for."""
    tokenizer = load_tokenizer(job.beside / TOKENIZER_FILE)
    found = [
        f"input.tokenizer={config_value(job.folder / TOKENIZER_FILE)}",
        f"input.max_tokens={job.options.max_tokens}",
        f"encoder.vocab_size={tokenizer.vocab_size}",
    ]
    if tokenizer.mask_id != TextEncoderConfig.mask_id:
        found.append(f"encoder.mask_id={tokenizer.mask_id}")
    return found


@cache
def _counter(folder: Path) -> Count:
    """As training counts, where the spelling of a special token is text."""
    tokenizer = load_tokenizer(folder / TOKENIZER_FILE)
    return lambda texts: [len(tokenizer.encode_literally(text)) for text in texts]


PACKING = Packing(
    suffixes=(*PLAIN, *JSON, *PARQUET),
    options=TextOptions,
    unit="tokens",
    read=read,
    survey=survey,
    lots=lots,
    check=check,
    prepare=prepare,
    settings=settings,
)
