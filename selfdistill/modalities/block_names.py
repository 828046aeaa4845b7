"""The parameters of our Transformer blocks by other people's names."""

from collections.abc import Mapping

from selfdistill.renaming import Pair, weight_and_bias

BLOCK = "trunk.blocks.{}"


def block_names(
    prefix: str, qkv: tuple[str, str, str], layers: Mapping[str, str], biased: str = "qkv"
) -> list[Pair]:
    """Pairs of a name in ``Backbone`` and theirs.

    Args:
        prefix: of one layer there, with ``{}`` for its number.
        qkv: what the projections of query, key and value are called there.
        layers: layers of our block to theirs, each with weight and bias.
        biased: which of the projections have a bias.
    """
    names: list[Pair] = [
        (f"{BLOCK}.attention.qkv.weight", tuple(f"{prefix}.{part}.weight" for part in qkv))
    ]
    names += [
        (f"{BLOCK}.attention.{ours}_bias", f"{prefix}.{theirs}.bias")
        for ours, theirs in zip("qkv", qkv, strict=True)
        if ours in biased
    ]
    for ours, theirs in layers.items():
        names += weight_and_bias(f"{BLOCK}.{ours}", f"{prefix}.{theirs}")
    return names
