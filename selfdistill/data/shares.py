"""How many samples of a step each modality has."""

from collections.abc import Mapping
from fractions import Fraction
from math import gcd, lcm

from selfdistill.errors import UserError


def split_batch(
    batch_size: int, weights: Mapping[str, float], accumulate: int, world_size: int
) -> dict[str, int]:
    """Split ``train.batch_size`` in proportion to ``data.sampling_weight``.

    Args:
        batch_size: samples per step over all processes and micro-batches.
        weights: of each modality.
        accumulate: micro-batches per step and process.
        world_size: processes.

    Returns:
        By modality; each can be divided by ``accumulate * world_size``.

    Raises:
        UserError: there is no such split; a batch size that would do is named.
    """
    exact = {name: Fraction(str(weight)) for name, weight in weights.items()}
    shared = lcm(*(weight.denominator for weight in exact.values()))
    parts = {name: int(weight * shared) for name, weight in exact.items()}
    divisor = gcd(*parts.values())
    parts = {name: part // divisor for name, part in parts.items()}
    micro_batches = accumulate * world_size
    unit = sum(parts.values()) * micro_batches
    if batch_size % unit:
        several = ", ".join(f"{name} {part}" for name, part in parts.items())
        over = f" in the shares {several} of data.sampling_weight and" if len(parts) > 1 else ""
        raise UserError(
            f"train.batch_size: {batch_size} samples cannot be split evenly{over} over "
            f"train.accumulate={accumulate} micro-batches on {world_size} processes; use a "
            f"multiple of {unit}"
        )
    return {name: batch_size // sum(parts.values()) * part for name, part in parts.items()}
