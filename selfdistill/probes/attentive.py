"""A learned query that attends over the tokens of a layer, and a linear layer on what it finds.

The attentive probe of V-JEPA and others in its smallest form. The query starts at zero, where the
probe is a linear one on the mean of the tokens.
"""

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from selfdistill.probes.classify import Score, score
from selfdistill.probes.features import Features
from selfdistill.probes.splits import validation_split
from selfdistill.probes.tokens import CPU, LayerTokens, best_pass

BATCH = 64
MAX_PASSES = 30
RATES = (1e-2, 1e-3)
WEIGHT_DECAY = 1e-2


class AttentiveProbe(nn.Module):
    """Tokens [B, T, D] to classes [B, C]."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(width))
        self.linear = nn.Linear(width, classes)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        similarity = x @ self.query / math.sqrt(x.shape[-1])
        weight = similarity.masked_fill(padding, -torch.inf).softmax(dim=1)
        return self.linear(torch.einsum("bt,btd->bd", weight, x))


def attentive(train: Features, test: Features, seed: int = 0, device: torch.device = CPU) -> Score:
    """The probe on every layer, and on the one that does best on the validation part.

    Rate and number of passes are chosen there, too, see ``best_pass``. What was held out is not
    fitted again.

    Args:
        train, test: tokens; see ``Features``.
        seed: of the validation part and of the order.
        device: to train on.
    """
    classes, members = np.unique(train.labels, return_inverse=True)
    split = validation_split(train.labels, seed)
    validated, scores = [], []
    for layer in range(len(train.layers)):
        tokens = LayerTokens(train, layer, seed=seed, device=device)
        fitted = [_fit(tokens, members, len(classes), split, rate, seed) for rate in RATES]
        error, model = min(fitted, key=lambda found: found[0])
        tested = LayerTokens(test, layer, tokens)
        told = classes[_tell(model, tested, np.arange(len(tested)))]
        validated.append(error)
        scores.append(score(told == test.labels, layer, seed))
    return replace(scores[int(np.argmin(validated))], layers=scores)


def _fit(
    tokens: LayerTokens,
    members: np.ndarray,
    classes: int,
    split: tuple[np.ndarray, np.ndarray],
    rate: float,
    seed: int,
) -> tuple[float, AttentiveProbe]:
    """Validated error and the probe that has it."""
    fit, held = split
    model = AttentiveProbe(tokens.width, classes).to(tokens.device)
    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=WEIGHT_DECAY)
    targets = torch.from_numpy(members).to(tokens.device)

    def loss(samples: np.ndarray) -> Tensor:
        return F.cross_entropy(model(*tokens.batch(samples)), targets[samples])

    def error() -> float:
        return float((_tell(model, tokens, held) != members[held]).mean())

    return best_pass(model, optimizer, loss, error, fit, BATCH, MAX_PASSES, seed)


@torch.no_grad()
def _tell(model: AttentiveProbe, tokens: LayerTokens, samples: np.ndarray) -> np.ndarray:
    """Numbers of the classes of samples, int64."""
    blocks = (samples[start : start + BATCH] for start in range(0, len(samples), BATCH))
    told = [model(*tokens.batch(block)).argmax(dim=1).cpu().numpy() for block in blocks]
    return np.concatenate(told)
