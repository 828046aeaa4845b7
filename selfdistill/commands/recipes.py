"""``selfdistill recipes``."""

import argparse
import shutil
import textwrap

from selfdistill.commands.shared import Commands, add_command, names_recipes

MAX_WIDTH = 100


def add(commands: Commands) -> None:
    recipes = add_command(
        commands,
        "recipes",
        [
            "recipes",
            "recipes image/sample > mine.yaml",
        ],
        help="list the configs that come with the package",
        description="List the configs that come with the package, and what each of them needs. All "
        "commands that take a CONFIG take their names. With a name: print that config.",
    )
    names_recipes(recipes.add_argument("name", nargs="?", metavar="NAME", help="print this one"))
    recipes.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from selfdistill.config_files.recipes import find_config, recipe_names

    if options.name:
        text = find_config(options.name).read_text(encoding="utf-8")
    else:
        width = min(shutil.get_terminal_size().columns, MAX_WIDTH)
        text = "\n".join(_described(name, width) for name in recipe_names())
    print(text, end="")


def _described(name: str, width: int) -> str:
    from selfdistill.config_files.recipes import read_recipe

    recipe = read_recipe(name)
    entries = [recipe.title, *(f"{word}: {text}" for word, text in recipe.facts.items())]
    filled = (
        textwrap.fill(entry, width, initial_indent="  ", subsequent_indent="    ")
        for entry in entries
    )
    return "\n".join([name, *filled, ""])
