"""The regression head."""

from torch import nn

from selfdistill.config import ObjectiveConfig
from selfdistill.models.initialise import beit_, bert_
from selfdistill.models.projection import projection


def build_head(objective: ObjectiveConfig, width: int) -> nn.Sequential:
    """``head_layers`` linear layers with GELU between; twice as wide inside."""
    inner = 2 * width
    head = projection([width, *[inner] * (objective.head_layers - 1), width])
    if objective.head_initializer == "bert":
        head.apply(bert_)
    elif objective.head_initializer == "beit":
        head.apply(beit_)
    return head
