"""The light decoder of data2vec 2.0 (arXiv 2212.07525, section 3.2)."""

import torch
from torch import Tensor, nn

from selfdistill.config import DecoderConfig
from selfdistill.models.conv import ConvStack
from selfdistill.models.dropout import Dropout
from selfdistill.models.initialise import bert_
from selfdistill.models.projection import projection
from selfdistill.types import Masks


class Decoder(nn.Module):
    """Fills in what the student did not see.

    Noise stands at the masked places; convolutions over the whole sequence or grid and a projection
    make predictions of it.

    Args:
        config: of the decoder.
        width: D, of what comes in and goes out.
        grid: rows and columns for convolutions in two dimensions; None: one dimension.
        clears_padding: whether padding is cleared before each convolution.
    """

    def __init__(
        self,
        config: DecoderConfig,
        width: int,
        grid: tuple[int, int] | None,
        clears_padding: bool = True,
    ) -> None:
        super().__init__()
        self.noise = config.mask_noise_std
        self.clears_padding = clears_padding
        self.dropout = Dropout(config.input_dropout)
        widths = conv_widths(config, width)
        self.convs = ConvStack(widths, config.kernel, config.groups, config.residual, grid)
        layers = projection(projection_widths(config, width))
        self.projection = layers if len(layers) > 1 else layers[0]
        if config.initializer == "bert":
            self.projection.apply(bert_)

    def forward(self, visible: Tensor, masks: Masks, padding: Tensor | None) -> Tensor:
        """Predictions [R, N, D] at the masked places.

        Args:
            visible: the student's output [R, V, D] at the visible places.
            masks: which ones these are.
            padding: bool [R, T], True at padding; None: no padding.
        """
        x = self.convs(self.fill_in(visible, masks), padding if self.clears_padding else None)
        predictions: Tensor = self.projection(masks.gather(x))
        return predictions

    def fill_in(self, visible: Tensor, masks: Masks) -> Tensor:
        """The visible vectors at their places [R, T, D], and noise at the others."""
        shape = (*masks.masked.shape, visible.shape[-1])
        noise = torch.randn(shape, dtype=visible.dtype, device=visible.device) * self.noise
        return masks.restore(self.dropout(visible), noise)


def conv_widths(config: DecoderConfig, width: int) -> list[int]:
    """Channels of the tokens, which are ``width``, and behind each convolution."""
    return [width] + [config.width] * config.layers


def projection_widths(config: DecoderConfig, width: int) -> list[int]:
    """Channels behind the convolutions, and behind each layer of the projection."""
    return [config.width, *[config.projection_width] * (config.projection_layers - 1), width]
