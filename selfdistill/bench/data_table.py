"""What ``bench data`` measured, for people."""

from collections.abc import Mapping
from typing import Any

from selfdistill.amounts import counted
from selfdistill.bench.data import STAGES
from selfdistill.bench.rates import rates


def table(result: Mapping[str, Any]) -> str:
    """What ``bench_data`` found, in words."""
    lines = []
    for name, found in result["modalities"].items():
        lines += _of_modality(name, found)
    loader, step, cores = result["loader"], result["step"], result["cores"]
    workers = "no worker" if not loader["workers"] else counted(loader["workers"], "worker")
    line = f"loader with {workers}: {loader['samples_per_second']:,.0f} samples/s"
    padded = {name: share for name, share in loader["padded_share"].items() if share}
    if padded:
        shares = (f"{share:.1%} of {name}" for name, share in padded.items())
        line += f"; padding: {', '.join(shares)}"
    lines.append(line)
    if loader["retries"]:
        lines.append(f"broken connections tried again: {loader['retries']:,}")
    sizes = ", ".join(f"{n:,} {name} samples" for name, n in step["samples"].items())
    lines.append(
        f"a step of {sizes}: {_time(step['one_core_seconds'])} of one core, "
        f"{_time(step['loader_seconds'])} from the loader"
    )
    if loader["workers"] > cores:
        lines.append(f"data.workers: {loader['workers']}, but there are {counted(cores, 'core')}")
    return "\n".join(lines)


def _of_modality(name: str, found: Mapping[str, Any]) -> list[str]:
    shards = counted(found["shards"], "shard")
    total = 1e6 / found["samples_per_second"]
    rows = [(stage, 1e6 * found["seconds"][stage], found["share"][stage], "") for stage in STAGES]
    rows.append(("one core", total, 1.0, "   " + rates(found)))
    lines = [f"{name}: {found['samples']:,} samples in {shards}; batches of {found['batch']:,}"]
    lines.append(f"{'us a sample':>25}   share")
    lines += [f"  {stage:10}{us:13,.0f}{share:8.1%}{end}" for stage, us, share, end in rows]
    if found["bad"]:
        bad = ", ".join(f"{n} x {reason}" for reason, n in found["bad"].items())
        lines.append(f"  bad samples: {bad}")
    return lines


def _time(seconds: float) -> str:
    return f"{seconds:,.2f} s" if seconds >= 1 else f"{1000 * seconds:,.1f} ms"
