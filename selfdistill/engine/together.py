"""Work that all processes of a run share: a signal or an error on one of them ends it on all."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from selfdistill.engine.checkpoint_files import Checkpoint, read_checkpoint
from selfdistill.engine.signals import StopSignal
from selfdistill.errors import SelfdistillError, UserError

T = TypeVar("T")


class _Told(BaseException):
    """All processes know that the work ends; no handler of an ``Exception`` may take it.

    Args:
        error: why; None: a signal.
    """

    def __init__(self, error: SelfdistillError | None) -> None:
        super().__init__(error)
        self.error = error


class Together:
    """Runs shared work. All processes call its methods together, and in the same order.

    Before they wait for each other they tell each other how they are, so that none waits for one
    that has left. What is not foreseen, an error that is no ``SelfdistillError``, ends its process,
    and with it the others.

    Args:
        accelerator: of the run.
        stop: its signals.
    """

    def __init__(self, accelerator: Accelerator, stop: StopSignal) -> None:
        self._accelerator, self._stop = accelerator, stop

    def run(self, work: Callable[[], T]) -> tuple[T] | None:
        """What ``work`` returns; None on all processes: a signal to one of them put an end to it.

        Raises:
            SelfdistillError: what ``work`` raised on one process, on all of them.
        """
        found: tuple[T] | None = None
        error: SelfdistillError | None = None
        try:
            try:
                found = self._stop.until_asked(lambda: (work(),))
            except SelfdistillError as raised:
                error = raised
            self._tell(error, stopped=found is None)
        except _Told as told:
            if told.error is not None:
                raise told.error from told.error.__cause__
            return None
        return found

    def complete(self, work: Callable[[], object]) -> None:
        """The same of work that no signal may put an end to, and that gathers nothing."""
        error: SelfdistillError | None = None
        try:
            work()
        except SelfdistillError as raised:
            error = raised
        try:
            self._tell(error)
        except _Told as told:
            if told.error is not None:
                raise told.error from told.error.__cause__

    def gather(self, arrays: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
        """Bring arrays to the main process, inside ``run``; a signal waits until it is done.

        Args:
            arrays: of this process. One that has fewer than the others lacks the last ones.

        Returns:
            For each place in ``arrays`` what the processes have there, in the order of their
            numbers; empty on processes other than the main one.
        """
        with self._stop.held():
            self._tell()
            most = max(gather_object([len(arrays)]))
            # one after the other: the communication's buffers hold one array of each process
            found = [self._to_main(arrays[i] if i < len(arrays) else None) for i in range(most)]
        return found if self._accelerator.is_main_process else []

    def _to_main(self, array: np.ndarray | None) -> list[np.ndarray]:
        accelerator = self._accelerator
        if accelerator.num_processes == 1:
            return [] if array is None else [array]
        main = accelerator.is_main_process
        found: list[np.ndarray | None] = [None] * accelerator.num_processes
        torch.distributed.gather_object(array, found if main else None, dst=0)
        return [part for part in found if part is not None]

    def _tell(self, error: SelfdistillError | None = None, stopped: bool = False) -> None:
        """Raises ``_Told`` on all processes where one of them has an error, or was stopped."""
        told = gather_object([(error, stopped)])
        errors = [theirs for theirs, _ in told if theirs is not None]
        if errors or any(was for _, was in told):
            raise _Told(error or next(iter(errors), None))


def on_all(accelerator: Accelerator, work: Callable[[], T]) -> T:
    """What ``work`` returns on this process, when all have done theirs; what it raises on one is
    raised on all."""
    found = Together(accelerator, StopSignal()).run(work)
    assert found is not None, "it listens to no signal"
    return found[0]


def read_on_all(path: Path, accelerator: Accelerator) -> Checkpoint:
    """What all processes read of the checkpoint that they go on from.

    Raises:
        UserError: on all processes, where one of them cannot.
    """

    def read() -> Checkpoint:
        if not path.exists():
            raise UserError(
                f"run_dir: the main process goes on from {path}, which process "
                f"{accelerator.process_index} does not find; give all nodes the same folder"
            )
        return read_checkpoint(path)

    return on_all(accelerator, read)
