"""One table of names, used in both directions, between our parameters and somebody else's."""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Pair = tuple[str, str | tuple[str, ...]]
Names = Sequence[Pair]


def weight_and_bias(ours: str, theirs: str) -> list[Pair]:
    """The pairs of a layer that has both."""
    return [(f"{ours}.{kind}", f"{theirs}.{kind}") for kind in ("weight", "bias")]


def _matcher(pattern: str) -> re.Pattern[str]:
    return re.compile(re.escape(pattern).replace(r"\{\}", r"(\d+)"))


def _parts(theirs: str | tuple[str, ...]) -> tuple[str, ...]:
    return (theirs,) if isinstance(theirs, str) else theirs


def to_ours(tensors: Mapping[str, Tensor], names: Names) -> tuple[dict[str, Tensor], list[str]]:
    """Rename, joining along the first axis what we keep in one tensor.

    Args:
        tensors: by their names.
        names: pairs (ours, theirs); see ``OriginalFormat.names``.

    Returns:
        The tensors by our names, and the names that are not in the table.
    """
    found: dict[str, dict[int, Tensor]] = {}
    unknown = []
    table = [
        (_matcher(part), ours, place, len(_parts(theirs)))
        for ours, theirs in names
        for place, part in enumerate(_parts(theirs))
    ]
    expected: dict[str, int] = {}
    for name, tensor in tensors.items():
        for matcher, ours, place, count in table:
            match = matcher.fullmatch(name)
            if match:
                ours = ours.format(*match.groups())
                found.setdefault(ours, {})[place] = tensor
                expected[ours] = count
                break
        else:
            unknown.append(name)
    whole = {ours: parts for ours, parts in found.items() if len(parts) == expected[ours]}
    joined = {
        ours: parts[0] if len(parts) == 1 else torch.cat([parts[i] for i in sorted(parts)])
        for ours, parts in whole.items()
    }
    return joined, unknown


def to_theirs(tensors: Mapping[str, Tensor], names: Names) -> dict[str, Tensor]:
    """The way back: our tensors by their names, split where they keep several.

    Raises:
        KeyError: a tensor that is not in the table.
    """
    table = [(_matcher(ours), _parts(theirs)) for ours, theirs in names]
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        for matcher, parts in table:
            match = matcher.fullmatch(name)
            if match:
                pieces = tensor.chunk(len(parts)) if len(parts) > 1 else (tensor,)
                for part, piece in zip(parts, pieces, strict=True):
                    renamed[part.format(*match.groups())] = piece
                break
        else:
            raise KeyError(name)
    return renamed
