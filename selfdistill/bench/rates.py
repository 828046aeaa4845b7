"""Rates in words, as both tables of ``bench`` have them."""

from collections.abc import Mapping
from typing import Any


def rates(found: Mapping[str, Any]) -> str:
    """Of a modality: samples, tokens and, where it has one, its length, per second.

    Args:
        found: ``samples_per_second``, ``tokens_per_second`` and perhaps ``length_per_second`` with
            its ``length_unit``.
    """
    words = [f"{_rounded(found['samples_per_second'])} samples/s"]
    words.append(f"{_rounded(found['tokens_per_second'])} tokens/s")
    if "length_unit" in found:
        unit = found["length_unit"]
        per = "hours/hour" if unit == "seconds" else f"{unit}/s"
        words.append(f"{_rounded(found['length_per_second'])} {per}")
    return ", ".join(words)


def _rounded(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 1000 else f"{rate:,.1f}"
