"""Scores as plain values, for JSON and for the tables."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from selfdistill.probes.bootstrap import mean_interval, ratio_interval
from selfdistill.probes.classify import Score
from selfdistill.probes.ctc import SpellingScore

ACCURACY, ERROR = "accuracy", "character_error_rate"


def plain_scores(
    scores: Mapping[str, Score], seed: int, groups: np.ndarray | None = None
) -> dict[str, Any]:
    """By source; "trained" also has "over": {source: {"difference", "low", "high"}}, paired by
    test sample; see ``Features.groups``."""
    found = {source: _of_score(score) for source, score in scores.items()}
    trained = scores["trained"]
    found["trained"]["over"] = {
        source: _difference(
            trained.accuracy - score.accuracy,
            mean_interval(trained.right - score.right, seed, groups),
        )
        for source, score in scores.items()
        if source != "trained"
    }
    return found


def plain_spelling(scores: Mapping[str, SpellingScore], seed: int) -> dict[str, Any]:
    """The same of a CTC probe, with "character_error_rate" in place of "accuracy"."""
    found = {source: _of_spelling(score) for source, score in scores.items()}
    trained = scores["trained"]
    found["trained"]["over"] = {
        source: _difference(
            trained.rate - score.rate,
            ratio_interval(trained.errors - score.errors, trained.characters, seed),
        )
        for source, score in scores.items()
        if source != "trained"
    }
    return found


def _difference(value: float, interval: tuple[float, float]) -> dict[str, float]:
    return {"difference": value, "low": interval[0], "high": interval[1]}


def _of_score(score: Score) -> dict[str, Any]:
    found: dict[str, Any] = {
        ACCURACY: score.accuracy,
        "low": score.interval[0],
        "high": score.interval[1],
        "standard_error": score.standard_error,
        "n": len(score.right),
        "layer": score.layer,
    }
    if score.std is not None:
        found["std"] = score.std
    if score.layers:
        found["layers"] = [_of_score(layer) for layer in score.layers]
    return found


def _of_spelling(score: SpellingScore) -> dict[str, Any]:
    found: dict[str, Any] = {
        ERROR: score.rate,
        "low": score.interval[0],
        "high": score.interval[1],
        "n": len(score.errors),
        "layer": score.layer,
    }
    if score.layers:
        found["layers"] = [_of_spelling(layer) for layer in score.layers]
    return found
