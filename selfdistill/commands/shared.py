"""What several commands have in common."""

import argparse
from collections.abc import Sequence
from os.path import expanduser
from pathlib import Path
from typing import Any, TypeAlias

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

CONFIG = "a YAML file, or the name of a recipe such as image/sample"
MODEL = "a run, a checkpoint, a folder of transformers, or USER/NAME on the Hub"
MODALITY = "whose encoder, of a run over several modalities"
WEIGHTS = "whose they are, of a run (default student)"


class HelpFormatter(argparse.HelpFormatter):
    """Leaves lines that are set in as they are: commands, to be copied."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines = text.split("\n")
        return "\n".join(
            line if line.startswith(" ") else super(HelpFormatter, self)._fill_text(line, width, "")
            for line in lines
        )


def examples(*commands: str) -> str:
    """The end of a help: what can be typed, without ``selfdistill`` in front."""
    return "\n".join(["examples:", *(f"  selfdistill {command}" for command in commands)])


def names_recipes(action: argparse.Action) -> None:
    """Let shells complete an argument by the names of recipes, too (argcomplete)."""

    def complete(**_: Any) -> list[str]:
        from selfdistill.config_files.recipes import recipe_names

        return recipe_names()

    action.completer = complete  # type: ignore[attr-defined]


def add_command(
    commands: Commands, name: str, words: Sequence[str], **more: Any
) -> argparse.ArgumentParser:
    """A command's parser.

    Args:
        words: examples, see ``examples``.
        more: as for ``argparse.ArgumentParser``.
    """
    parser = commands.add_parser(
        name, epilog=examples(*words), formatter_class=HelpFormatter, **more
    )
    parser.set_defaults(parser=parser)  # what is wrong with its arguments is told with its usage
    return parser


def path(text: str) -> Path:
    """The value of an option; of --out=~/x no shell expands the ~."""
    return Path(expanduser(text))


def seed(text: str) -> int:
    """The value of ``--seed``; raises what argparse shows."""
    if (value := int(text)) < 0:
        raise argparse.ArgumentTypeError(f"{text} must not be negative")
    return value
