"""launch/torchrun.py over two hosts, started as launch/kubernetes.yaml starts it in two pods."""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from held import LAUNCH, Held, serving
from launching import rows, weights

STEPS = 40


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """Two network namespaces that know each other by the names of the manifest's pods."""
    name = f"selfdistill-{os.getpid()}"
    if not shutil.which("ip"):
        pytest.skip("no ip (Debian: iproute2)")
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"network namespaces are not permitted: {tried.stderr.strip()}")
    subprocess.run(["ip", "netns", "delete", name], check=True)
    with serving("two_hosts.sh", name, log=tmp_path_factory.mktemp("hosts") / "log"):
        yield [f"{name}-0", f"{name}-1"]


def command_of_pod(number: int, words: list[str]) -> list[str]:
    """What the manifest has pod ``number`` do, with one process in place of eight GPUs."""
    job = list(yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text()))[-1]
    container = job["spec"]["template"]["spec"]["containers"][0]
    replaced = {
        "--node-rank=$(JOB_COMPLETION_INDEX)": f"--node-rank={number}",
        "--nproc-per-node=8": "--nproc-per-node=1",
    }
    assert set(replaced) < set(container["args"])
    options = [replaced.get(word, word) for word in container["args"]]
    return [*container["command"], *options[: options.index("CONFIG")], *words]


class Pods:
    """The launchers of both hosts.

    Args:
        hosts: names of their namespaces.
        words: after ``pretrain``.
        environment: of the launchers.
        folder: for what they say.
    """

    def __init__(
        self, hosts: list[str], words: list[str], environment: dict[str, str], folder: Path
    ) -> None:
        folder.mkdir()
        self.said = [folder / host for host in hosts]
        self.processes = [
            subprocess.Popen(
                ["ip", "netns", "exec", host, *command_of_pod(number, words)],
                env={**environment, "GLOO_SOCKET_IFNAME": "wire"},
                cwd=LAUNCH.parent,
                stderr=path.open("wb"),
            )
            for number, (host, path) in enumerate(zip(hosts, self.said, strict=True))
        ]

    def wait(self) -> list[int]:
        """Their exit codes."""
        return [process.wait(180) for process in self.processes]


@pytest.mark.slow
def test_evicted_and_finished(
    hosts: list[str],
    words: Callable[[Path], list[str]],
    uninterrupted: Path,
    at_python: dict[str, str],
    tmp_path: Path,
) -> None:
    """SIGTERM to one pod ends both with 75; two new pods get where one host of two gets."""
    run = tmp_path / "run"
    first = Pods(hosts, words(run), at_python, tmp_path / "first")
    held = Held(run, from_step=3)
    first.processes[1].send_signal(signal.SIGTERM)
    held.go_on()
    assert first.wait() == [75, 75]
    step = rows(run)[-1]["step"]
    assert 3 <= step < STEPS
    said = [path.read_text() for path in first.said]
    assert said[0].count(f"stopped after step {step} together with another process") == 1
    assert "Traceback" not in said[0] + said[1]
    second = Pods(hosts, words(run), at_python, tmp_path / "second")
    assert second.wait() == [0, 0]
    assert "resumed from" in second.said[0].read_text()
    assert weights(run, STEPS) == weights(uninterrupted, STEPS)
