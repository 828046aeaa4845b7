"""One table of names, used in both directions, between our parameters and somebody else's."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Part = str | tuple[str, ...]
Pair = tuple[Part, Part]
Names = Sequence[Pair]
"""Ours and theirs. ``{}`` stands for a number and must occur equally often on both sides; ``{+1}``
on theirs is the number plus one. Where one side keeps in one tensor what the other keeps in
several, these are named in the order in which they are joined along the first axis."""


def weight_and_bias(ours: str, theirs: str) -> list[Pair]:
    """The pairs of a layer that has both."""
    return [(f"{ours}.{kind}", f"{theirs}.{kind}") for kind in ("weight", "bias")]


@dataclass(frozen=True)
class _Rule:
    """One name of one side, and what it becomes."""

    matcher: re.Pattern[str]
    shifts: tuple[int, ...]
    """What is added to each number on the way."""
    targets: tuple[str, ...]
    place: int
    """Of this name among those that make up one target."""
    count: int


def _rules(pairs: Iterable[tuple[Part, Part]], towards_ours: bool) -> list[_Rule]:
    rules = []
    for sources, targets in pairs:
        sources, targets = _parts(sources), _parts(targets)
        assert len(sources) == 1 or len(targets) == 1
        shifted = sources if towards_ours else targets
        sign = -1 if towards_ours else 1
        shifts = tuple(sign * (m.group() == "{+1}") for m in re.finditer(r"\{(\+1)?\}", shifted[0]))
        plain = tuple(target.replace("{+1}", "{}") for target in targets)
        for place, source in enumerate(sources):
            pattern = re.escape(source).replace(r"\{\}", r"(\d+)").replace(r"\{\+1\}", r"(\d+)")
            matcher = re.compile(pattern)
            rules.append(_Rule(matcher, shifts, plain, place, len(sources)))
    return rules


def _parts(names: Part) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names


def _rename(
    tensors: Mapping[str, Tensor], rules: Sequence[_Rule]
) -> tuple[dict[str, Tensor], list[str]]:
    """By the other side's names, and the names that no rule knows."""
    found: dict[str, dict[int, Tensor]] = {}
    counts: dict[str, int] = {}
    unknown = []
    for name, tensor in tensors.items():
        for rule in rules:
            match = rule.matcher.fullmatch(name)
            if match:
                break
        else:
            unknown.append(name)
            continue
        numbers = [int(n) + shift for n, shift in zip(match.groups(), rule.shifts, strict=True)]
        pieces = tensor.chunk(len(rule.targets)) if len(rule.targets) > 1 else (tensor,)
        for target, piece in zip(rule.targets, pieces, strict=True):
            renamed = target.format(*numbers)
            found.setdefault(renamed, {})[rule.place] = piece
            counts[renamed] = rule.count
    whole = {name: parts for name, parts in found.items() if len(parts) == counts[name]}
    joined = {
        name: parts[0] if len(parts) == 1 else torch.cat([parts[i] for i in sorted(parts)])
        for name, parts in whole.items()
    }
    return joined, unknown


def to_ours(tensors: Mapping[str, Tensor], names: Names) -> tuple[dict[str, Tensor], list[str]]:
    """Rename, joining and splitting along the first axis what the two sides keep differently.

    Args:
        tensors: by their names.
        names: pairs (ours, theirs).

    Returns:
        The tensors by our names, and the names that are not in the table.
    """
    return _rename(tensors, _rules(((theirs, ours) for ours, theirs in names), towards_ours=True))


def to_theirs(tensors: Mapping[str, Tensor], names: Names) -> dict[str, Tensor]:
    """The way back: our tensors by their names.

    Raises:
        KeyError: a tensor that is not in the table.
    """
    renamed, unknown = _rename(tensors, _rules(names, towards_ours=False))
    if unknown:
        raise KeyError(unknown[0])
    return renamed
