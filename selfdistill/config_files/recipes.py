"""The configs that come with the package, by name, such as ``image/sample``.

A recipe opens with comments that people and programs read: a title; the command; and what it needs
and gives, each entry from its word (``FACTS``) on, further lines of it set in by three spaces.
"""

import difflib
import re
from dataclasses import dataclass
from pathlib import Path

from selfdistill.errors import UserError

FOLDER = Path(__file__).parents[1] / "configs"
"""In the repository a link to the folder at its top."""
SUFFIX = ".yaml"
FACTS = ("Hardware", "Time", "Data", "Expect")

_FACT = re.compile(rf"({'|'.join(FACTS)}): (.*)")


@dataclass(frozen=True)
class Recipe:
    """What a recipe says of itself.

    Attributes:
        name: without suffix, the folder in front.
        title: what it trains on what.
        facts: by the words in ``FACTS``.
    """

    name: str
    title: str
    facts: dict[str, str]


def recipe_names() -> list[str]:
    """Of all recipes, sorted."""
    files = FOLDER.rglob(f"*{SUFFIX}")
    return sorted(path.relative_to(FOLDER).with_suffix("").as_posix() for path in files)


def find_config(name: str) -> Path:
    """The config of that path; where there is none, the recipe of that name.

    Raises:
        UserError: there is neither; names like it are told. Or it cannot be looked for.
    """
    path = Path(name)
    try:
        if path.is_file():
            return path
    except OSError as error:  # too long a name, a folder without permission
        raise UserError(f"config: cannot read '{name}': {error.strerror}") from error
    known = recipe_names()
    recipe = name.removesuffix(SUFFIX)
    if recipe in known:
        return FOLDER / f"{recipe}{SUFFIX}"
    if path.is_dir():
        raise UserError(f"config: '{name}' is a folder; name a file, such as a run's config.yaml")
    near = difflib.get_close_matches(recipe.removeprefix("configs/"), known, n=2, cutoff=0.5)
    like = f"; did you mean {' or '.join(near)}?" if near else ""
    raise UserError(
        f"config: there is no file '{name}', and no recipe of that name{like} (selfdistill recipes "
        "lists them)"
    )


def read_recipe(name: str) -> Recipe:
    """What the comments at the top of a recipe say.

    Args:
        name: one of ``recipe_names``.
    """
    title: list[str] = []
    facts: dict[str, list[str]] = {}
    current: list[str] | None = title
    for line in (FOLDER / f"{name}{SUFFIX}").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        text = line[2:]
        if fact := _FACT.fullmatch(text):
            current = facts.setdefault(fact[1], [fact[2]])
        elif current is not None and text and (current is title or text.startswith("  ")):
            current.append(text.strip())
        else:
            current = None
    return Recipe(name, " ".join(title), {word: " ".join(lines) for word, lines in facts.items()})
