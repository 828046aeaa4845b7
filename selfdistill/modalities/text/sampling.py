"""Text drawn for training a tokenizer."""

import heapq
from collections.abc import Iterable, Iterator

import numpy as np

from selfdistill.masking import row_keys
from selfdistill.modalities.text.documents import Block, Document
from selfdistill.packing.declaration import Skipped

SAMPLED_BYTES = 64 << 20
"""Of text that a tokenizer is trained on."""


def draw(blocks: Iterable[Block], seed: int, most: int = SAMPLED_BYTES) -> list[Block]:
    """Blocks from all over the text, each as likely as another, in their order.

    Args:
        blocks: looked at once, one at a time.
        seed: of the draw.
        most: bytes that are kept; all is kept if it is no more.
    """
    held: list[tuple[int, int, Block]] = []  # the largest key first
    total = 0
    for number, block in enumerate(blocks):
        key = int(row_keys(seed, np.array([number]))[0])
        if total >= most and key > -held[0][0]:
            continue
        heapq.heappush(held, (-key, number, block))
        total += block.size
        while total > most and len(held) > 1:
            total -= heapq.heappop(held)[2].size
    return [block for _, _, block in sorted(held, key=lambda entry: entry[1])]


def texts(blocks: Iterable[Block], field: str, skipped: list[Skipped]) -> Iterator[str]:
    """Their texts; what has none is added to ``skipped``."""
    for block in blocks:
        for entry in block.documents(field):
            if isinstance(entry, Document):
                yield entry.text
            else:
                skipped.append(entry)
