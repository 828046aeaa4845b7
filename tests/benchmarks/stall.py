"""Time that training loses per checkpoint: if it waits for the file, and as it is.

    python tests/benchmarks/stall.py configs/image/base_imagenet.yaml [--rounds 3] [key=value ...]

Steps are taken on the CPU, on noise. A round has steps without a checkpoint, one after which
training waits for the whole checkpoint, and one after which the checkpoint is written while
training goes on; what the steps until it is written take longer is counted, too. So the two ways
take turns. Beside the seconds lost stand those of processor time, which other programs on the
machine do not change: pinned to one core (taskset) no way can lose less than these.
"""

import argparse
import tempfile
from pathlib import Path

from accelerate import Accelerator
from measuring import Seconds, median, taken
from memory import batch_of

from selfdistill.config import RunConfig
from selfdistill.config_files.load import load_config
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
        accelerator = Accelerator(cpu=True)
        self.saver = Saver(self.model, self.optimizer, accelerator, self.checkpointer, "")
        self.steps = 0

    def step(self) -> None:
        output = self.model({self.modality: self.batch})[self.modality]
        (output.loss / output.tokens).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.model.update_teacher(0.999)
        self.steps += 1

    def save_and_wait(self) -> None:
        packed = pack_optimizer(self.optimizer, self.model)
        self.waiting.save(Checkpoint(self.steps, self.model.state_dict(), packed, {}))

    def save_meanwhile(self, plain_step: Seconds) -> tuple[Seconds, Seconds, int]:
        """What the copy takes, what it takes besides that steps go on, and their number."""
        copy = taken(lambda: self.saver.save(self.steps, {}))
        writing, count = self.checkpointer._writing, 0

        def go_on() -> None:
            nonlocal count
            while writing is not None and not writing.done():
                self.step()
                count += 1
            self.saver.finish()

        return copy, taken(go_on) - plain_step * count, count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=1)
    options = parser.parse_intermixed_args()
    changes = [*options.overrides, "run_dir=unused"]
    config = load_config(options.config, changes, load_modality)
    waited, copied, meanwhile = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        training = Training(config, Path(folder), options.batch)
        training.step()
        training.save_meanwhile(taken(training.step))  # memory for the copies is taken once
        for _ in range(options.rounds):
            plain = median([taken(training.step) for _ in range(3)])
            waited.append(taken(training.save_and_wait))
            copy, longer, count = training.save_meanwhile(plain)
            copied.append(copy)
            meanwhile.append(Seconds(copy.clock + longer.clock, copy.processor + longer.processor))
            print(
                f"step {plain}\n  waiting {waited[-1]}\n"
                f"  meanwhile {meanwhile[-1]}, copy {copy}, {count} steps",
                flush=True,
            )
        files = [*Path(folder).glob("meanwhile/step-*/*")]
        size = sum(file.stat().st_size for file in files) / 1e9
    print(f"checkpoint of {size:.2f} GB, medians of {options.rounds} rounds")
    print(f"training waits: {median(waited)}")
    print(f"as it is: {median(meanwhile)}, of which the copy {median(copied)}")


if __name__ == "__main__":
    main()
