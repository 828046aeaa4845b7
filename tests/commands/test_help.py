"""Each command's help shows examples, and they are what the command takes."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

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


def test_keys_may_stand_behind_options() -> None:
    words = ["pretrain", "image/sample", "--resume", "seed=1"]
    assert cli._parse(words).overrides == ["seed=1"]
    assert cli._parse(words[:2]).overrides == []
    assert cli._parse(["inspect", "x", "--samples", "3", "seed=1"]).overrides == ["seed=1"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["pretrain", "x", "--steps=9"], "unrecognized arguments: --steps=9; keys are given as"),
        (["pretrain"], "the following arguments are required: CONFIG\n"),
        (["watch", "x", "y"], "unrecognized arguments: y\n"),
    ],
)
def test_wrong_arguments_are_told_with_the_usage_of_the_command(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"usage: selfdistill {words[0]} ")
    assert f"selfdistill {words[0]}: error: {told}" in said


def test_a_home_may_be_named_in_an_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    for words in (["embed", "x", "y"], ["report", "x"], ["compare", "x"], ["inspect", "x"]):
        assert cli._parse([*words, "--out=~/of mine"]).out == Path("/home/me/of mine")


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
    for command in ("recipes", "inspect"):
        found = completed(f"selfdistill {command} image/sample")
        assert found == ["image/sample", "image/sample_visible"]
