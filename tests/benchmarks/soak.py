"""Runs that are killed again and again must end with the weights of one that nothing interrupted.

    python tests/benchmarks/soak.py [--kills 200] [--steps 2000] [--seed 0] [--device cpu]

Every kill is a SIGKILL at a random instant: during training, inside the write of a checkpoint, or
in the first seconds. After it the same command goes on; where the run ends before the last kill,
another one begins. Prints how many kills there were, how many of them the run survived (it went on
from the newest complete checkpoint), and how many lost one.
"""

import argparse
import contextlib
import os
import random
import re
import signal
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

from launching import Running, weights
from tiny import write_config, write_shards
from tqdm import tqdm

WORDS = [
    "model.width=8",
    "model.depth=1",
    "objective.average_top_k_layers=1",
    "train.batch_size=2",
    "checkpoint.every=10",
    "log.every=1",
    "train.deterministic=true",
]
KINDS = ("training", "writing", "at the start")
START_SECONDS = 2
WRITE_SECONDS = 0.01
SHARE = 0.5
"""Of the steps that come before the last kill on average, so that it comes before the end."""
STEP, RESUMED = "\nstep ", "resumed from"


@dataclass
class Counts:
    """What became of the kills."""

    tried: int = 0
    survived: int = 0
    lost: int = 0
    inside_a_write: int = 0
    before_the_first_step: int = 0


class Soak:
    """One run and what kills it.

    Args:
        folder: for everything.
        steps: of the run.
        seed: of the instants.
        device: cpu or cuda.
    """

    def __init__(self, folder: Path, steps: int, seed: int, device: str = "cpu") -> None:
        self.folder = folder
        self.steps = steps
        self.setup = _on_gpu if device == "cuda" else None
        self.random = random.Random(seed)
        self.counts = Counts()
        self.run, self.reference = folder / "killed", folder / "reference"
        self.shards = write_shards(folder / "shards", "text")
        self.starts = 0

    def uninterrupted(self) -> None:
        """Train the reference."""
        self._ends_well(self._start(self.reference))

    def kill(self, steps: float) -> bool:
        """Start the run or go on with it, and kill it some ``steps`` later on average; whether it
        had not come to its end before."""
        newest, unfinished = self._newest(), self._unfinished()
        running = self._start(self.run)
        self._wait(running, self.random.choice(KINDS), 2 * steps * self.random.random())
        running.send(signal.SIGKILL)
        running.process.join()
        running.clear()
        if running.process.exitcode == 0:
            return False
        assert running.process.exitcode == -signal.SIGKILL, running.printed("stderr")
        self._judge(running, newest)
        self.counts.tried += 1
        self.counts.inside_a_write += not self._unfinished() <= unfinished
        if STEP not in running.printed("stderr"):
            self.counts.before_the_first_step += 1
        return True

    def end(self) -> bool:
        """Let the run end; whether its weights are the reference's."""
        newest, running = self._newest(), self._start(self.run)
        self._ends_well(running)
        self._judge(running, newest)
        return weights(self.run, self.steps) == weights(self.reference, self.steps)

    def _start(self, run: Path) -> Running:
        self.starts += 1
        path = write_config(self.folder / "config.yaml", "text", self.shards, run)
        words = [str(path), *WORDS, f"train.steps={self.steps}"]
        return Running(["pretrain", *words], self.folder / f"output-{self.starts}", self.setup)

    def _ends_well(self, running: Running) -> None:
        ended = running.wait(3600)
        assert ended.code == 0, ended.stderr

    def _wait(self, running: Running, kind: str, steps: float) -> None:
        if kind == "at the start":
            running.process.join(START_SECONDS * self.random.random())
            return
        first = None
        while running.process.is_alive():
            step = self._step(running)
            first = step if first is None else first
            if step is not None and step >= (first or step) + steps:
                break
            time.sleep(0.002)
        before = self._unfinished()
        while kind == "writing" and self._unfinished() <= before and running.process.is_alive():
            pass
        time.sleep(WRITE_SECONDS * self.random.random())

    def _step(self, running: Running) -> int | None:
        """The last one that a run told of."""
        path = running.output / "stderr"
        if not path.exists():
            return None
        with open(path, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 1000))
            found = re.findall(rb"\nstep (\d+)/", file.read())
        return int(found[-1]) if found else None

    def _judge(self, running: Running, newest: Path | None) -> None:
        """Whether a start went on from the newest checkpoint, and with it all kills before it.

        One that was killed before it could tell leaves it to the next.
        """
        told = running.printed("stderr")
        if RESUMED not in told and STEP not in told:
            return
        open_ones = self.counts.tried - self.counts.survived - self.counts.lost
        if (f"{RESUMED} {newest}\n" in told) if newest else (RESUMED not in told):
            self.counts.survived += open_ones
        else:
            self.counts.lost += open_ones

    def _newest(self) -> Path | None:
        return max(self.run.glob("checkpoints/step-*"), default=None)

    def _unfinished(self) -> set[tuple[Path, int]]:
        """Unfinished checkpoints and when they changed."""
        found = set()
        for path in self.run.glob("checkpoints/.writing-*"):
            with contextlib.suppress(FileNotFoundError):
                found.add((path, path.stat().st_mtime_ns))
        return found


def _on_gpu() -> None:
    os.environ["ACCELERATE_USE_CPU"] = "false"


def soak(
    folder: Path, kills: int, steps: int, seed: int, device: str = "cpu"
) -> tuple[Counts, int, bool]:
    """Kill so often; the counts, the number of runs that it took, and whether all of them ended
    with the right weights."""
    found, runs, same = Soak(folder, steps, seed, device), 0, True
    found.uninterrupted()
    with tqdm(total=kills, disable=None) as bar:
        while found.counts.tried < kills:
            runs += 1
            found.run = folder / f"killed-{runs}"
            while found.counts.tried < kills and found.kill(SHARE * steps / kills):
                bar.update()
            same &= found.end()
    return found.counts, runs, same


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (("kills", 200), ("steps", 2000), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        counts, runs, same = soak(
            Path(folder), options.kills, options.steps, options.seed, options.device
        )
    for name, count in asdict(counts).items():
        print(f"{name.replace('_', ' ')}: {count}")
    print(f"bitwise equal weights after {options.steps} steps: {'yes' if same else 'NO'}")
    print(f"{runs} runs, {time.monotonic() - began:.0f} s")
    return 0 if same and counts.survived == options.kills else 1


if __name__ == "__main__":
    sys.exit(main())
