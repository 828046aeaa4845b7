"""Each command's help shows examples, and they are what the command takes."""

import os
import shlex
import subprocess
import sys

import pytest

from selfdistill import cli
from selfdistill.cli import COMMANDS, main

NAMES = [command.__name__.rpartition(".")[2] for command in COMMANDS]


def help_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main([*words, "--help"])
    assert ended.value.code == 0
    return capsys.readouterr().out


def examples_in(text: str) -> list[list[str]]:
    lines = text.partition("\nexamples:\n")[2].splitlines()
    return [shlex.split(line.partition(" > ")[0]) for line in lines]


@pytest.mark.parametrize("name", NAMES)
def test_the_examples_of_a_command_can_be_typed(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = examples_in(help_of(capsys, name))
    assert found
    for program, *words in found:
        assert program == "selfdistill"
        assert words[0] == name
        options = cli._parse(words)
        assert options.run.__module__ == f"selfdistill.commands.{name}"


def test_the_list_of_commands_is_complete(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(capsys)
    listed = [line.split()[0] for line in text.splitlines() if line.startswith("    ")]
    assert listed == NAMES
    assert examples_in(text)[0] == ["selfdistill", "pretrain", "image/sample_visible"]


@pytest.mark.parametrize("modality", ["audio", "image", "text"])
def test_a_modality_tells_how_it_is_packed(
    modality: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["pack", modality, "--help"])
    text = capsys.readouterr().out
    assert f"\n  selfdistill pack {modality} raw/ --out data/mine\n" in text
    assert "\n  --shard-size MB" in text


@pytest.mark.parametrize("words", [["probe", "x"], ["inspect", "x"], ["pack", "image", "x"]])
def test_seeds_are_not_negative(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", "y"] if words[0] == "pack" else []
    with pytest.raises(SystemExit) as ended:
        main([*words, *out, "--seed", "-1"])
    assert ended.value.code == 2
    assert "argument --seed: -1 must not be negative" in capsys.readouterr().err


def test_the_version_names_what_it_runs_on(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    found = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert [*found] == ["selfdistill", "torch", "accelerate", "transformers", "python"]
    assert all(version[0].isdigit() for version in found.values())


def completed(line: str) -> list[str]:
    """What a shell is told that could end a line."""
    code = "import os, sys; from selfdistill.cli import main; os.dup2(1, 8); main()"
    asked = {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **asked},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return [word.strip() for word in done.stdout.splitlines()]


def test_a_shell_completes_commands_and_recipes() -> None:
    assert completed("selfdistill pre") == ["pretrain"]
    assert completed("selfdistill recipes image/sample") == ["image/sample", "image/sample_visible"]
