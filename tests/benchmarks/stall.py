"""Time that training loses per checkpoint: if it waits for the file, and as it is.

    python tests/benchmarks/stall.py configs/image/base_imagenet.yaml [--rounds 3] [key=value ...]

Steps are taken on the CPU, on noise. A round has a step without a checkpoint, one after which
training waits for the whole checkpoint, and one after which the checkpoint is written while
training goes on; the steps until it is written are counted, too.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from accelerate import Accelerator
from memory import batch_of

from selfdistill.config import RunConfig
from selfdistill.config_file import load_config
from selfdistill.engine.checkpoint import Checkpointer
from selfdistill.engine.checkpoint_files import Checkpoint
from selfdistill.engine.optim import build_optimizer
from selfdistill.engine.optimizer_state import pack_optimizer
from selfdistill.engine.saving import Saver
from selfdistill.modalities.base import load_modality
from selfdistill.objective.data2vec import Data2Vec


class Training:
    """Steps of a model on noise."""

    def __init__(self, config: RunConfig, folder: Path, batch_size: int) -> None:
        self.modality = config.modality
        self.batch = batch_of(config, batch_size)
        self.model = Data2Vec(config)
        self.optimizer = build_optimizer(self.model, config.optim)
        self.waiting = Checkpointer(folder / "waiting", keep=1)
        self.checkpointer = Checkpointer(folder / "meanwhile", keep=1)
        self.saver = Saver(self.model, self.optimizer, Accelerator(cpu=True), self.checkpointer)
        self.steps = 0

    def step(self) -> float:
        """Take one; its seconds."""
        began = time.monotonic()
        output = self.model({self.modality: self.batch})[self.modality]
        (output.loss / output.tokens).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.model.update_teacher(0.999)
        self.steps += 1
        return time.monotonic() - began

    def save_and_wait(self) -> float:
        began = time.monotonic()
        packed = pack_optimizer(self.optimizer, self.model)
        self.waiting.save(Checkpoint(self.steps, self.model.state_dict(), packed, {}))
        return time.monotonic() - began

    def save_meanwhile(self, plain_step: float) -> tuple[float, float, int]:
        """Seconds of the copy, what the steps meanwhile take longer, and their number."""
        began = time.monotonic()
        self.saver.save(self.steps, {})
        copied, longer, count = time.monotonic() - began, 0.0, 0
        writing = self.checkpointer._writing
        while writing is not None and not writing.done():
            longer += self.step() - plain_step
            count += 1
        self.saver.finish()
        return copied, longer, count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=1)
    options = parser.parse_intermixed_args()
    changes = [*options.overrides, "run_dir=unused"]
    config = load_config(options.config, changes, load_modality)
    waited, copied, longer = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        training = Training(config, Path(folder), options.batch)
        training.step()
        plain = training.step()
        training.save_meanwhile(plain)  # memory for the copies is taken once
        for _ in range(options.rounds):
            plain = statistics.median(training.step() for _ in range(3))
            waited.append(training.save_and_wait())
            of_copy, of_steps, count = training.save_meanwhile(plain)
            copied.append(of_copy)
            longer.append(of_steps)
            print(
                f"step {plain:.2f} s; waiting {waited[-1]:.2f} s; meanwhile: copy {of_copy:.2f} s, "
                f"{count} steps {of_steps:.2f} s longer",
                flush=True,
            )
        files = [*Path(folder).glob("meanwhile/step-*/*")]
        size = sum(file.stat().st_size for file in files) / 1e9
    print(f"checkpoint of {size:.2f} GB, medians of {options.rounds}")
    print(f"training waits: {statistics.median(waited):.2f} s")
    both = [a + b for a, b in zip(copied, longer, strict=True)]
    print(
        f"as it is: {statistics.median(copied):.2f} s for the copy, {statistics.median(both):.2f} s"
    )


if __name__ == "__main__":
    main()
