"""Floating point operations of the audio encoder."""

from itertools import pairwise

from selfdistill.config import RunConfig
from selfdistill.models.flops import Counts, EncoderFlops, Flops, conv_stack, convolution, linear


def flops(config: RunConfig, counts: Counts) -> EncoderFlops:
    """The convolutions of the waveform, and those of positions over all tokens of each row; with
    strategy visible, too, they run on the whole sequence."""
    samples, length = counts.shape
    encoder, width = config.encoder, config.model.width
    convs = Flops()
    channels = [1, *(layer[0] for layer in encoder.conv_layers)]
    for number, (inner, outer) in enumerate(pairwise(channels)):
        _, kernel, stride = encoder.conv_layers[number]
        length = (length - kernel) // stride + 1
        convs += convolution(samples * length, kernel, inner, outer, first=number == 0)
    embed = convs + linear(samples * length, channels[-1], width)
    widths = [width] * (encoder.position_depth + 1)
    kernel, groups = encoder.position_kernel, encoder.position_groups
    positions = conv_stack(1, counts.tokens, widths, kernel, groups)
    return EncoderFlops(embed, positions * counts.rows, positions * samples, convs)
