"""Masks of the student's input, for sequences and for grids of patches.

All chance comes from a counter-based hash of the row's key, so a row gets the same mask whatever
batch, worker or process it lands in, and a resumed run draws the masks it would have drawn.
"""

from selfdistill.masking.chance import clone_keys, row_keys, uniform
from selfdistill.masking.exact import masked_count, painted_spans, painted_squares, random_tokens
from selfdistill.masking.rectangles import block_masks
from selfdistill.masking.spans import span_masks

__all__ = [
    "block_masks",
    "clone_keys",
    "masked_count",
    "painted_spans",
    "painted_squares",
    "random_tokens",
    "row_keys",
    "span_masks",
    "uniform",
]
