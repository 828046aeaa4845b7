"""A run that is killed again and again must end with the weights of one that nothing interrupted.

    python tests/benchmarks/soak.py [--kills 200] [--steps 2000] [--seed 0]

Every kill is a SIGKILL at a random instant: during training, inside the write of a checkpoint, or
at any time after the start. After it the same command goes on. Prints how many kills there were,
how many of them the run survived (it went on from the newest complete checkpoint), and how many
checkpoints were lost.
"""

import argparse
import random
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
    "log.every=10",
]
KINDS = ("training", "writing", "anywhere")
WRITE_SECONDS = 0.01
SHARE = 0.6
"""Of the reference's time that the kills may take on average, so that all come before the end."""
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
    """

    def __init__(self, folder: Path, steps: int, seed: int) -> None:
        self.folder = folder
        self.steps = steps
        self.random = random.Random(seed)
        self.counts = Counts()
        self.run, self.reference = folder / "killed", folder / "reference"
        self.shards = write_shards(folder / "shards", "text")
        self.starts = 0

    def uninterrupted(self) -> float:
        """Train the reference; returns the seconds that it took."""
        began = time.monotonic()
        self._ends_well(self._start(self.reference))
        return time.monotonic() - began

    def kill(self, seconds: float) -> None:
        """Start the run or go on with it, and kill it after this time on average."""
        newest = self._newest()
        running = self._start(self.run)
        self._wait(running, self.random.choice(KINDS), 2 * seconds * self.random.random())
        running.send(signal.SIGKILL)
        running.process.join()
        assert running.process.exitcode == -signal.SIGKILL, running.printed("stderr")
        running.clear()
        self._judge(running, newest)
        self.counts.tried += 1
        self.counts.inside_a_write += any(self._unfinished())
        self.counts.before_the_first_step += STEP not in running.printed("stderr")

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
        return Running(["pretrain", *words], self.folder / f"output-{self.starts}")

    def _ends_well(self, running: Running) -> None:
        ended = running.wait(3600)
        assert ended.code == 0, ended.stderr

    def _wait(self, running: Running, kind: str, seconds: float) -> None:
        before = self._unfinished()
        if kind != "anywhere":
            while STEP not in running.printed("stderr") and running.process.is_alive():
                time.sleep(0.005)
        if kind == "writing":
            while self._unfinished() <= before and running.process.is_alive():
                pass
            seconds = WRITE_SECONDS * self.random.random()
        time.sleep(seconds)

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

    def _unfinished(self) -> set[Path]:
        return {*self.run.glob("checkpoints/.writing-*")}


def soak(folder: Path, kills: int, steps: int, seed: int) -> tuple[Counts, bool]:
    """Kill a run so often; the counts, and whether it ended with the right weights."""
    found = Soak(folder, steps, seed)
    seconds = found.uninterrupted()
    for _ in tqdm(range(kills), disable=None):
        found.kill(SHARE * seconds / kills)
    return found.counts, found.end()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (("kills", 200), ("steps", 2000), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        counts, same = soak(Path(folder), options.kills, options.steps, options.seed)
    for name, count in asdict(counts).items():
        print(f"{name.replace('_', ' ')}: {count}")
    print(f"bitwise equal weights after {options.steps} steps: {'yes' if same else 'NO'}")
    print(f"{time.monotonic() - began:.0f} s")
    return 0 if same and counts.survived == options.kills else 1


if __name__ == "__main__":
    sys.exit(main())
