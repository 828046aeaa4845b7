"""Runs of a few steps on the shipped data, and what is exported of them."""

import socket
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from selfdistill.cli import main
from selfdistill.pretrained import Pretrained, load_pretrained

ROOT = Path(__file__).parents[2]
CONVS = "[[16,10,5],[16,3,2],[16,3,2],[16,3,2],[16,3,2],[16,2,2],[16,2,2]]"
TINY = {
    "audio": [
        "train.batch_size=4",
        f"encoder.conv_layers={CONVS}",
        "encoder.position_groups=4",
        "encoder.conv_bias=true",
    ],
    "image": ["input.size=[48,48]", "mask.num_patches=12"],
    "text": ["encoder.vocab_size=400", "input.max_tokens=48"],
}
SMALL = [
    "model.width=32",
    "model.depth=6",
    "model.heads=4",
    "train.steps=3",
    "optim.warmup_steps=1",
    "data.workers=0",
    "eval.tasks={}",
    "eval.pictures=false",
    "log.tensorboard=false",
]


TABLE = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def table(pytestconfig: pytest.Config) -> list[str]:
    """Lines to show after the tests."""
    return pytestconfig.stash.setdefault(TABLE, [])


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    for line in config.stash.get(TABLE, []):
        terminalreporter.write_line(line)


@pytest.fixture(params=["audio", "image", "text"])
def modality(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing may be looked for elsewhere, even where the failure would be overlooked."""
    asked: list[object] = []
    connect = socket.socket.connect

    def refuse(*place: object, **_: object) -> None:
        asked.append(place)
        raise OSError("there is no network")

    def connect_locally(self: socket.socket, address: Any) -> None:
        return connect(self, address) if self.family == socket.AF_UNIX else refuse(address)

    monkeypatch.setattr(socket.socket, "connect", connect_locally)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    yield
    assert asked == []


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Modality to the folder of a run of three steps."""
    made: dict[str, Path] = {}

    def of(modality: str) -> Path:
        if modality not in made:
            folder = tmp_path_factory.mktemp(f"run-{modality}") / "run"
            config = ROOT / "configs" / modality / "sample.yaml"
            words = ["pretrain", str(config), f"run_dir={folder}", *SMALL, *TINY[modality]]
            assert main(words) == 0
            made[modality] = folder
        return made[modality]

    return of


@pytest.fixture(scope="session")
def exported(
    tmp_path_factory: pytest.TempPathFactory, run: Callable[[str], Path]
) -> Callable[[str], Path]:
    """Modality to the exported folder of that run."""
    made: dict[str, Path] = {}

    def of(modality: str) -> Path:
        if modality not in made:
            made[modality] = tmp_path_factory.mktemp(f"export-{modality}") / "model"
            assert main(["export", str(run(modality)), "--out", str(made[modality])]) == 0
        return made[modality]

    return of


@pytest.fixture(scope="session")
def ours(run: Callable[[str], Path]) -> Callable[[str], Pretrained]:
    """Modality to the encoder of that run."""
    return cache(lambda modality: load_pretrained(str(run(modality))))
