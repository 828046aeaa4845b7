"""torchrun that keeps exit codes.

    python launch/torchrun.py --nnodes 2 --node-rank 0 --nproc-per-node 8 --master-addr HOST \
        -m selfdistill pretrain CONFIG

on each of two nodes, with its own --node-rank. Takes torchrun's options, and differs from it in
three things: it exits with the code of the process that failed first, where torchrun exits with 1;
it passes SIGTERM, SIGINT, SIGUSR1 and SIGHUP on and waits for as long as saving takes, where
torchrun waits for 30 seconds and exits with 1; and with --max-restarts it starts crashed processes
again, but not those that were asked to stop or would end the same way.
"""

import contextlib
import os
import signal
import sys
from types import FrameType
from typing import Any

import psutil

PREEMPTED = 75
FINAL = (2, 3, 4, PREEMPTED)
"""Exit codes after which there is no use in starting the processes again."""
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)

passed_on: set[int] = set()


def pass_on(number: int, _: FrameType | None) -> None:
    """Hand a signal to the processes; without any, there is nothing to wait for."""
    passed_on.add(number)
    children = psutil.Process().children()
    if not children:
        sys.exit(PREEMPTED)
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.send_signal(number)


def main() -> int:
    for number in PASSED_ON:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
            signal.signal(number, pass_on)
    os.environ["PET_SIGNALS_TO_HANDLE"] = "SIGQUIT"  # torchrun's; the others are ours
    # imported here, because it takes seconds, in which a signal may come
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher import api
    from torch.distributed.run import main as torchrun

    class Agent(api.LocalElasticAgent):
        def _monitor_workers(self, worker_group: Any) -> Any:
            result = super()._monitor_workers(worker_group)
            codes = {failure.exitcode for failure in result.failures.values()}
            if codes and (passed_on or not codes.isdisjoint(FINAL)):
                self._remaining_restarts = 0
            return result

    api.LocalElasticAgent = Agent
    try:
        torchrun()
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        code = failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
        print(f"torchrun: process {rank} failed first, with exit code {code}", file=sys.stderr)
        # the signal came before there was a step to save
        return PREEMPTED if code - 128 in passed_on else code
    return 0


if __name__ == "__main__":
    sys.exit(main())
