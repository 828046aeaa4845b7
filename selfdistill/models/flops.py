"""Floating point operations of matrix products and convolutions, by formula.

A multiplication with its addition counts as two. All else (norms, activations, softmax) is left
out: it is bound by memory, not by arithmetic.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

from selfdistill.config import DecoderConfig, ModelConfig
from selfdistill.models.decoder import conv_widths, projection_widths
from selfdistill.types import Batch


@dataclass(frozen=True)
class Flops:
    """Of the forward and of the backward pass."""

    forward: float = 0.0
    backward: float = 0.0

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(self.forward + other.forward, self.backward + other.backward)

    def __mul__(self, factor: float) -> "Flops":
        return Flops(self.forward * factor, self.backward * factor)

    def without_gradient(self) -> "Flops":
        """The forward pass alone."""
        return Flops(self.forward)


@dataclass(frozen=True)
class Counts:
    """What one micro-batch of a modality gives the model to do.

    Attributes:
        shape: of ``Batch.inputs``; the first entry is B.
        rows: R.
        tokens: T.
        visible: V, filled up to the longest row.
        masked: N, filled up to the longest row.
        prefix: P.
        grid: rows and columns of tokens; None: a sequence.
    """

    shape: tuple[int, ...]
    rows: int
    tokens: int
    visible: int
    masked: int
    prefix: int = 0
    grid: tuple[int, int] | None = None

    @classmethod
    def of(cls, batch: Batch, prefix: int, grid: tuple[int, int] | None) -> Self:
        """Of a batch with masks, for an encoder with such a prefix and grid."""
        masks = batch.masks
        assert masks is not None, "training batches carry masks"
        rows, tokens = masks.masked.shape
        visible, masked = masks.visible.shape[1], masks.index.shape[1]
        return cls(tuple(batch.inputs.shape), rows, tokens, visible, masked, prefix, grid)

    @property
    def samples(self) -> int:
        return self.shape[0]


@dataclass(frozen=True)
class EncoderFlops:
    """Of a modality's feature encoder, for one micro-batch.

    Attributes:
        embed: of ``FeatureEncoder.embed``.
        student: of what the student has between ``embed`` and the blocks, for all R rows.
        teacher: the same of the teacher, for all B rows; its backward pass is not counted.
        regions: the part of ``embed`` in ``Region``s, which can be recomputed.
    """

    embed: Flops = Flops()
    student: Flops = Flops()
    teacher: Flops = Flops()
    regions: Flops = Flops()


def linear(vectors: float, inner: int, outer: int) -> Flops:
    """A matrix of weights applied to so many vectors."""
    forward = 2.0 * vectors * inner * outer
    return Flops(forward, 2 * forward)


def convolution(
    places: float, kernel: int, inner: int, outer: int, groups: int = 1, first: bool = False
) -> Flops:
    """A convolution with weights.

    Args:
        places: of the output, over all rows.
        kernel: places of the input that one of them sees.
        inner, outer: channels.
        groups: that the channels are divided into.
        first: its input has no gradient.
    """
    forward = 2.0 * places * kernel * (inner // groups) * outer
    return Flops(forward, forward if first else 2 * forward)


def projection(vectors: float, widths: Sequence[int]) -> Flops:
    """``models.projection`` of the same widths."""
    return sum((linear(vectors, *pair) for pair in pairwise(widths)), Flops())


def conv_stack(
    rows: float,
    tokens: int,
    widths: Sequence[int],
    kernel: int,
    groups: int,
    grid: tuple[int, int] | None = None,
) -> Flops:
    """``models.conv.ConvStack`` of the same shape, for rows of so many tokens."""
    more = 1 - kernel % 2  # what an even kernel gives too much
    height, width = (tokens, 0) if grid is None else grid
    places = height + more if grid is None else (height + more) * (width + more)
    size = kernel if grid is None else kernel**2
    layers = (convolution(rows * places, size, *pair, groups) for pair in pairwise(widths))
    return sum(layers, Flops())


def block(
    config: ModelConfig,
    rows: float,
    tokens: int,
    wanted: int | None = None,
    drop_path: float = 0.0,
) -> Flops:
    """``models.block.Block`` on rows of so many tokens, prefix included.

    Args:
        config: of the model.
        rows, tokens: that go in.
        wanted: tokens of each row that have to come out; None: all.
        drop_path: chance of a row to be left out.
    """
    width = config.width
    if drop_path:
        rows = max(rows * (1 - drop_path), 1)
    vectors, behind = rows * tokens, rows * (tokens if wanted is None else wanted)
    weights = linear(vectors, width, 3 * width) + linear(behind, width, width)
    weights += projection(behind, (width, config.mlp_width, width))
    # logits, and the sum that they weigh: no weights, but both factors have a gradient
    return weights + linear(vectors, tokens, width) * 2


def decoder(config: DecoderConfig, width: int, counts: Counts) -> tuple[Flops, Flops]:
    """``models.decoder.Decoder``: its convolutions, and its projection at the masked places."""
    widths = conv_widths(config, width)
    convs = conv_stack(
        counts.rows, counts.tokens, widths, config.kernel, config.groups, counts.grid
    )
    return convs, projection(counts.rows * counts.masked, projection_widths(config, width))
