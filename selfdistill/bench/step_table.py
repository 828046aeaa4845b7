"""What ``bench`` measured of training, for people."""

from collections.abc import Mapping
from typing import Any

from selfdistill.amounts import counted, size
from selfdistill.bench.flops import RECOMPUTED
from selfdistill.bench.rates import rates
from selfdistill.bench.trace import IDLE
from selfdistill.bench.verdict import DATA_WAIT

ALWAYS = (DATA_WAIT, "rest")
"""Rows that are shown when they are 0, too."""
LARGE_DEVIATION = 0.05
"""Of the formulas from what torch counts, above which the table warns."""


def table(result: Mapping[str, Any]) -> str:
    """What ``bench_step`` found, in words."""
    machine, seconds = result["machine"], result["step_seconds"]
    lines = [_of_machine(machine)]
    lines += [_of_modality(name, found) for name, found in result["modalities"].items()]
    lines.append(
        f"a step: {_ms(seconds['median'])} ms (10th to 90th percentile {_ms(seconds['p10'])} to "
        f"{_ms(seconds['p90'])}), median of {result['steps']:,}"
    )
    lines += _parts(result)
    lines.append(f"peak memory: {memory(result['memory'])}")
    lines += _of_flops(result)
    if result["left_out"]:
        lines.append(f"{result['left_out']:,} steps were left out, because their loss was no good")
    lines.append(result["verdict"])
    return "\n".join(lines)


def sweep_table(result: Mapping[str, Any]) -> str:
    """What ``sweep_batch`` found, in words."""
    lines = [_of_machine(result["machine"])]
    lines.append(f"{'batch size':>10}{'samples/s':>12}{'step in ms':>12}   peak memory")
    for one in result["sizes"]:
        batch, rate = one["batch_size"], one["samples_per_second"]
        median = _ms(one["step_seconds"]["median"])
        lines.append(f"{batch:>10,}{rate:>12,.1f}{median:>12}   {memory(one['memory'])}")
    lines.append(f"fastest: {result['fastest']:,}; the largest tried, {result['largest']:,}, fits")
    lines.append(f"no larger one was tried: {result['ended']}")
    return "\n".join(lines)


def memory(found: Mapping[str, int]) -> str:
    """Peak memory in words."""
    if "resident" in found:
        return f"{size(found['resident'])} resident"
    return f"{size(found['allocated'])} allocated, {size(found['reserved'])} reserved"


def _of_machine(machine: Mapping[str, Any]) -> str:
    threads = (
        "" if machine["device_type"] == "cuda" else f", {counted(machine['threads'], 'thread')}"
    )
    processes = f"{counted(machine['processes'], 'process', 'es')}"
    return f"{machine['device']}: {processes}{threads}, {machine['precision']}"


def _of_modality(name: str, found: Mapping[str, Any]) -> str:
    return f"{name}, {found['samples']:,.0f} in a step: {rates(found)}"


def _parts(result: Mapping[str, Any]) -> list[str]:
    mean, flops = result["step_seconds"]["mean"], result["flops"]["by_part"]
    rate = result["matmul"]["flops_per_second"]
    lines = [f"{'ms':>29}   share    GFLOP   of matmul rate"]
    for part, share in result["shares"].items():
        if part == IDLE and result["machine"]["device_type"] != "cuda":
            continue
        done = flops.get(part, 0.0)
        if part == "backward":
            done += flops.get(RECOMPUTED, 0.0)
        if share == 0 and not done and part not in ALWAYS:
            continue
        line = f"  {part.replace('_', ' '):16}{1000 * mean * share:11,.2f}{share:8.1%}"
        if done:
            line += _gflop(done)
        if done and share:
            line += f"{done / (mean * share) / rate:17.0%}"
        lines.append(line)
    whole = sum(flops.values())
    lines.append(
        f"  {'step, on average':16}{1000 * mean:11,.2f}{1:8.1%}{_gflop(whole)}"
        f"{whole / mean / rate:17.0%}"
    )
    return lines


def _of_flops(result: Mapping[str, Any]) -> list[str]:
    flops, matmul = result["flops"], result["matmul"]
    per_second = flops["model"] / result["step_seconds"]["mean"]
    off = flops["deviation"]
    as_much = f"{abs(off):.1%} {'less' if off > 0 else 'more'} than" if abs(off) > 5e-4 else "as"
    lines = [
        f"{per_second / 1e9:,.1f} GFLOP/s, {result['use']:.0%} of the "
        f"{matmul['flops_per_second'] / 1e9:,.0f} that products of {matmul['size']} x "
        f"{matmul['size']} reach; torch counts {as_much} the formulas"
    ]
    if abs(off) > LARGE_DEVIATION:
        lines.append("the formulas are off: go by what torch counts")
    return lines


def _gflop(operations: float) -> str:
    return f"{operations / 1e9:9,.{3 if operations < 1e13 else 0}f}"


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:,.1f}"
