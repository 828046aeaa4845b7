from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from launching import ENVIRONMENT, Ended, Running, fresh_accelerate
from modality_cases import MODALITIES
from tiny import JOINT, STEPS, write_config, write_joint_config, write_shards

from selfdistill.cli import main


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[str]]:
    """Modality to its training shards, made once."""
    made: dict[str, list[str]] = {}

    def of(modality: str) -> list[str]:
        if modality not in made:
            made[modality] = write_shards(tmp_path_factory.mktemp(modality), modality)
        return made[modality]

    return of


@pytest.fixture(scope="session")
def write(shards: Callable[[str], list[str]]) -> Callable[[Path, str, Path], str]:
    """Write the config of a run over a modality, or over all; returns its path."""

    def at(path: Path, modality: str, run: Path) -> str:
        if modality == JOINT:
            return str(write_joint_config(path, {name: shards(name) for name in MODALITIES}, run))
        return str(write_config(path, modality, shards(modality), run))

    return at


@pytest.fixture
def config(tmp_path: Path, write: Callable[[Path, str, Path], str]) -> Callable[..., str]:
    """Modality to the path of a config whose run is kept in ``tmp_path / "run"``."""
    return lambda modality="image", run="run": write(
        tmp_path / f"{modality}-{run}.yaml", modality, tmp_path / run
    )


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Start ``selfdistill pretrain`` with these words in a process of its own."""
    started: list[Running] = []

    def run(*words: str, setup: Callable[[], object] | None = None) -> Running:
        output = tmp_path / f"output-{len(started)}"
        started.append(Running(["pretrain", *words], output, setup))
        return started[-1]

    yield run
    for running in started:
        running.clear()


@pytest.fixture
def pretrain(start: Callable[..., Running]) -> Callable[..., Ended]:
    """The same, waiting for its end."""
    return lambda *words, setup=None: start(*words, setup=setup).wait()


@pytest.fixture
def here(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Ended]]:
    """The same in this process, where parts of the program can be replaced."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)

    def run(*words: str) -> Ended:
        capsys.readouterr()
        with fresh_accelerate():
            code = main(["pretrain", *words])
        return Ended(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def reference(
    tmp_path_factory: pytest.TempPathFactory, write: Callable[[Path, str, Path], str]
) -> Callable[[str], Path]:
    """Modality to the folder of a run that nothing interrupted."""
    made: dict[str, Path] = {}

    def of(modality: str) -> Path:
        if modality not in made:
            folder = tmp_path_factory.mktemp(f"reference-{modality}")
            made[modality] = folder / "run"
            path = write(folder / "c.yaml", modality, made[modality])
            ended = Running(["pretrain", path], folder).wait()
            assert ended.code == 0, ended.stderr
            assert (made[modality] / "checkpoints" / f"step-{STEPS:08d}").is_dir()
        return made[modality]

    return of
