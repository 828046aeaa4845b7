"""How far the losses of two runs lie apart, line by line of their logs, as one JSON object.

    python tests/benchmarks/loss_curves.py RUN OTHER [--steps 200] [--within 0.02]

The exit code is 1 where a line differs by more than ``--within`` of the first run's loss.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from selfdistill.run_folder.files import MetricsFile


def losses(run: Path) -> dict[int, float]:
    """By step."""
    rows = MetricsFile(run).read()
    return {int(row["step"]): row["loss"] for row in rows if "loss" in row}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("other", type=Path)
    parser.add_argument("--steps", type=int, default=200, help="that are compared")
    parser.add_argument("--within", type=float, default=0.02)
    options = parser.parse_args()
    ours, theirs = losses(options.run), losses(options.other)
    steps = sorted(step for step in ours.keys() & theirs.keys() if step <= options.steps)
    if options.steps not in steps:
        sys.exit(f"--steps: the logs of both runs must have a line of step {options.steps}")
    first, second = (np.array([run[step] for step in steps]) for run in (ours, theirs))
    apart = np.abs(second / first - 1)
    found = {
        "runs": [str(options.run), str(options.other)],
        "lines": len(steps),
        "steps": options.steps,
        "largest_deviation": float(apart.max()),
        "mean_deviation": float(apart.mean()),
        "within": options.within,
    }
    print(json.dumps(found))
    return int(apart.max() > options.within)


if __name__ == "__main__":
    sys.exit(main())
