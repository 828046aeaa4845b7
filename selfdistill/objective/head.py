"""The regression head."""

from itertools import pairwise

from torch import nn

from selfdistill.config import ObjectiveConfig
from selfdistill.models.initialise import beit_, bert_


def build_head(objective: ObjectiveConfig, width: int) -> nn.Sequential:
    """``head_layers`` linear layers with GELU between; twice as wide inside."""
    inner = 2 * width
    sizes = [width, *[inner] * (objective.head_layers - 1), width]
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.GELU()]
    head = nn.Sequential(*layers[:-1])
    if objective.head_initializer == "bert":
        head.apply(bert_)
    elif objective.head_initializer == "beit":
        head.apply(beit_)
    return head
