"""launch/slurm.sh under a real SLURM, whose two nodes are this machine."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from batch_system import Slurm, local_slurm, why_not
from held import HERE, LAUNCH, Held, until
from launching import rows, weights

STEPS = 40
ON_CPUS = ["--ntasks-per-node=1", "--gpus-per-node=0", "--cpus-per-task=1"]
SCRIPT = LAUNCH / "slurm.sh"


@pytest.fixture(scope="module")
def slurm(at_python: dict[str, str]) -> Iterator[Slurm]:
    if reason := why_not(at_python["PATH"]):
        pytest.skip(reason)
    with local_slurm(at_python) as slurm:
        yield slurm


def test_preempted_and_queued_again(
    slurm: Slurm, words: Callable[[Path], list[str]], uninterrupted: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    job = slurm.submit(*ON_CPUS, SCRIPT, *words(run))
    held = Held(run, from_step=3)
    slurm.ask("scancel", "--batch", "--signal=USR1", job)
    until(lambda: held.waits_for(signal.SIGUSR1), "USR1 is passed on")
    held.go_on()
    slurm.wait_until_queued_again(job)
    step = rows(run)[-1]["step"]
    assert 3 <= step < STEPS
    over = slurm.wait(job)
    said, log = slurm.output(job), slurm.log(job, 0)
    assert over["JobState"] == "COMPLETED", said + log
    assert (over["ExitCode"], over["Restarts"]) == ("0:0", "1")
    assert weights(run, STEPS) == weights(uninterrupted, STEPS)
    assert [row["step"] for row in rows(run)] == [*range(1, STEPS + 1)]
    for line in (
        f"job {job}, start 1: 2 processes on node[0-1]",
        "asked to stop",
        "preempted",
        "queued again",
        "start 2",
        "finished",
    ):
        assert said.count(line) == 1, said
    assert log.count(f"stopped by signal SIGUSR1 after step {step}") == 1
    assert log.count("resumed from") == 1
    assert "step" not in slurm.log(job, 1)


def test_what_the_script_asks_for(slurm: Slurm) -> None:
    """Can be had of two nodes of eight GPUs, and not of one."""
    asked = "using 128 processors on nodes node[0-1]"
    assert asked in slurm.ask("bash", "-c", f"sbatch --test-only '{SCRIPT}' CONFIG 2>&1")
    more = ["bash", "-c", f"sbatch --test-only --nodes=3 '{SCRIPT}' CONFIG 2>&1 || true"]
    assert "Requested node configuration is not available" in slurm.ask(*more)


def test_mistake_is_not_queued_again(
    slurm: Slurm, words: Callable[[Path], list[str]], tmp_path: Path
) -> None:
    job = slurm.submit(*ON_CPUS, "--nodes=1", SCRIPT, *words(tmp_path / "run"), "optim.speed=1")
    over = slurm.wait(job)
    assert (over["JobState"], over["ExitCode"], over["Restarts"]) == ("FAILED", "2:0", "0")
    said = slurm.output(job)
    assert "stopped by a mistake in the config, the command or the data" in said
    assert said.count("optim.speed") == 1
    assert "start 2" not in said


CODES = {0: 0, 1: 1, 2: 2, 3: 3, 4: 4, 9: 137, 75: 75}
"""Exit codes by the number of the task; the last task has the number of the array as its own."""
TWO_PROCESSES = ("late", "hangs")
SIGNALS = {
    "early": ("--batch", "--signal=USR1"),  # before the first step
    "deaf": ("--batch", "--signal=USR1"),  # during something that takes too long
    "asked": ("--batch", "--signal=TERM"),
    "evicted": ("--signal=TERM",),  # as SLURM may do it: to the processes, not to the script
}


@pytest.fixture(scope="module")
def environment(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The option of sbatch that has a job run a stand-in for the training."""
    folder = tmp_path_factory.mktemp("stand-in")
    (folder / "python").symlink_to(HERE / "stand_in.sh")
    return f"--export=ALL,PATH={folder}:{slurm.environment['PATH']}"


@pytest.fixture(scope="module")
def jobs(
    slurm: Slurm, environment: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """Jobs by what becomes of them."""
    folder = tmp_path_factory.mktemp("jobs")
    impatient = SCRIPT.read_text()
    for wait in ("PATIENCE=90", "GRACE=30"):
        assert impatient.count(f"\n{wait} ") == 1
        impatient = impatient.replace(f"\n{wait} ", f"\n{wait[:-2]}2 ")
    (folder / "impatient.sh").write_text(impatient)

    def submit(nodes: int, *options: str, run: str) -> str:
        script = folder / "impatient.sh" if run in ("run-deaf", "run-hangs") else SCRIPT
        words = [f"--nodes={nodes}", environment, *options, script, "CONFIG"]
        return slurm.submit(*ON_CPUS, *words, "seed=%a", f"run_dir={run}")

    found = {"array": submit(1, f"--array={','.join(map(str, CODES))}", run="run-%A-%a")}
    found["one folder"] = submit(1, "--array=0", run="run-0")
    found |= {kind: submit(1, run=f"run-{kind}") for kind in (*SIGNALS, "cancelled", "requeued")}
    return found | {kind: submit(2, run=f"run-{kind}") for kind in TWO_PROCESSES}


def test_array_and_exit_codes(slurm: Slurm, jobs: dict[str, str]) -> None:
    """Each task has its own folder and logs, and only what was preempted is queued again."""
    array = jobs["array"]
    slurm.wait_until_queued_again(f"{array}_75")
    for task, code in CODES.items():
        over = slurm.wait(f"{array}_{task}")
        wanted = 0 if code == 75 else code
        assert over["ExitCode"] == f"{wanted}:0"
        assert over["JobState"] == ("FAILED" if wanted else "COMPLETED")
        assert over["Restarts"] == ("1" if code == 75 else "0")
        job = over["JobId"]
        assert f"job {array}_{task}, start 1: 1 processes" in slurm.output(job)
        words = f"CONFIG seed={task} run_dir=run-{array}-{task}"
        assert slurm.log(job, 0).startswith(f"process 0 of 1, here 0 of 1: {words}\n")


def test_array_in_one_folder(slurm: Slurm, jobs: dict[str, str]) -> None:
    over = slurm.wait(f"{jobs['one folder']}_0")
    assert (over["JobState"], over["ExitCode"]) == ("FAILED", "2:0")
    assert "add run_dir=FOLDER-%a" in slurm.output(over["JobId"])


@pytest.mark.parametrize("kind", TWO_PROCESSES)
def test_first_failure_counts(kind: str, slurm: Slurm, jobs: dict[str, str]) -> None:
    """Whether the other process has a higher exit code later, or waits for the one that failed."""
    over = slurm.wait(jobs[kind])
    assert (over["JobState"], over["ExitCode"]) == ("FAILED", "3:0")
    assert "process 1 was the first to end" in slurm.output(jobs[kind])
    here, meeting = slurm.log(jobs[kind], 1).splitlines()
    assert here == f"process 1 of 2, here 0 of 1: CONFIG seed=%a run_dir=run-{kind}"
    assert meeting == f"they meet at node0:{20000 + int(jobs[kind])}, each has 1 threads"


def test_signals(slurm: Slurm, jobs: dict[str, str]) -> None:
    """Each of them ends in a job that is queued again."""
    for kind, signals in SIGNALS.items():
        until(lambda kind=kind: f"run-{kind}" in slurm.log(jobs[kind], 0), f"{kind} has started")
        slurm.ask("scancel", *signals, jobs[kind])
    for kind in SIGNALS:
        slurm.wait_until_queued_again(jobs[kind])
    for kind in SIGNALS:
        said = slurm.output(jobs[kind])
        assert said.count("queued again") == 1, kind
        assert ("asked to stop" in said) == (kind != "evicted"), kind
        assert ("not ended 2 s after the signal" in said) == (kind == "deaf"), kind
        over = slurm.wait(jobs[kind])
        assert (over["ExitCode"], over["Restarts"]) == ("0:0", "1"), kind


def test_cancelled(slurm: Slurm, jobs: dict[str, str]) -> None:
    """The processes save all the same, but nobody wants the job back."""
    job = jobs["cancelled"]
    until(lambda: "run-cancelled" in slurm.log(job, 0), "it has started")
    slurm.ask("scancel", job)
    over = slurm.wait(job)
    assert (over["JobState"], over["Restarts"]) == ("CANCELLED", "0")
    until(lambda: "not queued again: cancelled" in slurm.output(job), "the script has ended")
    assert "asked to stop" not in slurm.output(job)


def begun(slurm: Slurm, job: str, kind: str) -> None:
    until(lambda: f"run-{kind}" in slurm.log(job, 0), "it has started")


def test_requeued_by_somebody(slurm: Slurm, jobs: dict[str, str]) -> None:
    """Who ends it queues it, too; the script has nothing to do but to wait for what is saved."""
    job = jobs["requeued"]
    begun(slurm, job, "requeued")
    slurm.ask("scontrol", "requeue", job)
    slurm.wait_until_queued_again(job)
    over = slurm.wait(job)
    assert (over["ExitCode"], over["Restarts"]) == ("0:0", "1")
    said = slurm.output(job)
    assert said.count("queued again by SLURM") == 1
    assert "not queued again" not in said


def test_preempted_by_a_more_urgent_job(slurm: Slurm, environment: str) -> None:
    """As SLURM itself does it; last, because it takes both nodes."""
    job = slurm.submit(*ON_CPUS, environment, SCRIPT, "CONFIG", "run_dir=run-preempted")
    begun(slurm, job, "preempted")
    urgent = ["--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null"]
    other = slurm.submit(*urgent, "--wrap=true")
    assert slurm.wait(other)["JobState"] == "COMPLETED"
    slurm.wait_until_queued_again(job)
    over = slurm.wait(job)
    assert (over["ExitCode"], over["Restarts"]) == ("0:0", "1")
    said = slurm.output(job)
    assert said.count("queued again") == 1
    assert "not queued again" not in said
