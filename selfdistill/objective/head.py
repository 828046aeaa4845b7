"""The regression head."""

from torch import nn

from selfdistill.config import ObjectiveConfig
from selfdistill.models.initialise import beit_, bert_
from selfdistill.models.projection import projection


def build_head(objective: ObjectiveConfig, width: int) -> nn.Sequential:
    """``head_layers`` linear layers with GELU between."""
    head = projection(head_widths(objective, width))
    if objective.head_initializer == "bert":
        head.apply(bert_)
    elif objective.head_initializer == "beit":
        head.apply(beit_)
    return head


def head_widths(objective: ObjectiveConfig, width: int) -> list[int]:
    """Channels before the head and behind each of its layers: twice as many inside."""
    return [width, *[2 * width] * (objective.head_layers - 1), width]
