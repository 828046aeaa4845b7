"""How the student predicts what it does not see: the two strategies.

``Dense`` is data2vec 1.0 (arXiv 2202.03555, section 3.3), ``Visible`` is data2vec 2.0
(arXiv 2212.07525, sections 3.1 and 3.2). Both run the same encoder and blocks.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor, nn

from selfdistill.config import RunConfig
from selfdistill.modalities.backbone import Backbone
from selfdistill.modalities.base import FeatureEncoder
from selfdistill.models.decoder import Decoder
from selfdistill.objective.head import build_head
from selfdistill.step_parts import as_part
from selfdistill.types import Masks, Tokens


class Prediction(NamedTuple):
    """What the student says of the targets.

    Attributes:
        masked: [R, N, D] at the masked tokens.
        prefix: the student's output [R, P, D] at the tokens in front of the input.
    """

    masked: Tensor
    prefix: Tensor


class Predictor(nn.Module, ABC):
    """Runs the student and makes predictions of its output."""

    @abstractmethod
    def forward(self, student: Backbone, local: Tokens, masks: Masks) -> Prediction:
        """
        Args:
            student: whose weights learn.
            local: its local features [B, T, D].
            masks: R rows.
        """


class Dense(Predictor):
    """The student runs on the whole sequence, with a mask vector where it must not look."""

    def __init__(self, config: RunConfig, encoder: FeatureEncoder) -> None:
        super().__init__()
        self.head = build_head(config.objective, config.model.width)

    def forward(self, student: Backbone, local: Tokens, masks: Masks) -> Prediction:
        encoder = student.encoder
        with as_part("student"):
            x = student(encoder.locate(encoder.fill(local, masks)), masks.index)
        prefix = encoder.num_prefix_tokens
        with as_part("decoder"):
            return Prediction(self.head(x[:, prefix:]), x[:, :prefix])


class Visible(Predictor):
    """The student runs on the visible tokens only, and a decoder fills in the rest."""

    def __init__(self, config: RunConfig, encoder: FeatureEncoder) -> None:
        super().__init__()
        self.decoder = Decoder(
            config.decoder,
            config.model.width,
            encoder.grid,
            clears_padding=not config.compat.padding_in_features,
        )

    def forward(self, student: Backbone, local: Tokens, masks: Masks) -> Prediction:
        encoder = student.encoder
        with as_part("student"):
            x = student(encoder.keep(local, masks))
        prefix = encoder.num_prefix_tokens
        padding = None if local.padding is None else masks.repeat(local.padding)
        with as_part("decoder"):
            return Prediction(self.decoder(x[:, prefix:], masks, padding), x[:, :prefix])


def build_predictor(config: RunConfig, encoder: FeatureEncoder) -> Predictor:
    """The strategy that ``config.strategy`` names, for one modality."""
    strategies: dict[str, type[Dense] | type[Visible]] = {"dense": Dense, "visible": Visible}
    return strategies[config.strategy](config, encoder)
