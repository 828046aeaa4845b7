"""A SLURM of two nodes on this machine."""

import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from held import serving, until
from launching import free_port

OVER = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"}


def why_not(path: str) -> str:
    """Why SLURM cannot be started here; empty if it can."""
    missing = [
        name for name in ("munged", "slurmctld", "slurmd") if not shutil.which(name, path=path)
    ]
    if missing:
        return f"SLURM is not installed: no {', '.join(missing)} (Debian: slurm-wlm and munge)"
    if subprocess.run(["unshare", "--pid", "--fork", "true"], capture_output=True).returncode:
        return "SLURM's daemons need root and a PID namespace of their own"
    return ""


class Slurm:
    """Jobs of a SLURM.

    Args:
        environment: of its commands and jobs.
        folder: where jobs are submitted.
    """

    def __init__(self, environment: dict[str, str], folder: Path) -> None:
        self.environment = environment
        self.folder = folder
        folder.mkdir()

    def ask(self, *command: str | Path) -> str:
        ended = subprocess.run(
            command, env=self.environment, cwd=self.folder, capture_output=True, text=True
        )
        assert ended.returncode == 0, f"{command}: {ended.stderr}"
        return ended.stdout.strip()

    def submit(self, *words: str | Path) -> str:
        return self.ask("sbatch", "--parsable", *words)

    def job(self, job: str) -> dict[str, str]:
        """What ``scontrol show job`` says of a job, or of the task of an array."""
        shown = self.ask("scontrol", "show", "job", job)
        return dict(re.findall(r"(\w+)=(\S+)", shown))

    def output(self, job: str) -> str:
        """What launch/slurm.sh says."""
        return (self.folder / f"selfdistill-{job}.out").read_text()

    def log(self, job: str, rank: int) -> str:
        """What a process of the job says."""
        path = self.folder / f"selfdistill-{job}" / f"rank-{rank}.log"
        return path.read_text() if path.exists() else ""

    def wait(self, job: str) -> dict[str, str]:
        """The job once it is over."""
        until(lambda: self.job(job)["JobState"] in OVER, f"the end of {self.job(job)}")
        return self.job(job)

    def wait_until_queued_again(self, job: str) -> None:
        """Also cut short the time that SLURM lets such a job wait."""
        until(lambda: self.job(job).get("Reason") == "BeginTime", f"{job} is queued again")
        # slurmd tells a new start from the one that was ended by the second
        time.sleep(2)
        self.ask("scontrol", "update", f"jobid={job}", "StartTime=now")


@contextmanager
def local_slurm(environment: dict[str, str]) -> Iterator[Slurm]:
    # names of sockets must be short
    with tempfile.TemporaryDirectory(prefix="slurm-") as name:
        folder = Path(name)
        log = folder / "script.log"
        ports = [str(free_port()) for _ in range(3)]
        with serving("local_slurm.sh", name, *ports, log=log):
            conf = {"SLURM_CONF": str(folder / "slurm.conf")}
            yield Slurm({**environment, **conf}, folder / "jobs")
