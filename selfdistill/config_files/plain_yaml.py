"""Reads a config's YAML: plain values, and no more of them than a config can have."""

from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from selfdistill.errors import UserError

MAX_VALUES, MAX_LEVELS = 100_000, 20
TOO_DEEP = f"has sections in sections of more than {MAX_LEVELS} levels, or one inside itself"


class _Loader(yaml.SafeLoader):
    """Refuses a key that is there twice: all but its last value would be lost without a word. What
    looks like a date is text, such as a name of a run."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in found if not tag.endswith(":timestamp")]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        known = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in known:
                words = f"it has '{key.value}' twice, the second time"
                raise ConstructorError(problem=words, problem_mark=key.start_mark)
            known.add(key.value)
        return super().construct_mapping(node, deep)


def read_sections(path: Path) -> dict[str, Any]:
    """The sections of a config file.

    Raises:
        UserError: it cannot be read, or is no YAML of plain values in sections.
    """
    try:
        with open(path, encoding="utf-8") as file:
            content = yaml.load(file, _Loader)
    except OSError as error:
        raise UserError(f"config: cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        words = str(error).replace(f'in "{path}", line', "in line")
        raise UserError(f"config: {path} is not plain YAML: {' '.join(words.split())}") from error
    except RecursionError as error:
        raise UserError(f"config: {path} {TOO_DEEP}") from error
    if not isinstance(content, dict):
        raise UserError(f"config: {path} holds no sections; write lines such as modality: image")
    _refuse_endless(content, path)
    return content


def _refuse_endless(content: Any, path: Path) -> None:
    """A few lines of YAML can stand for endless values, by an alias inside what it stands for."""
    waiting, count = [(content, 0)], 0
    while waiting:
        value, level = waiting.pop()
        count += 1
        if level > MAX_LEVELS:
            raise UserError(f"config: {path} {TOO_DEEP}")
        if count > MAX_VALUES:
            raise UserError(f"config: {path} stands for more than {MAX_VALUES:,} values")
        if isinstance(value, dict | list):
            parts = value.values() if isinstance(value, dict) else value
            waiting += [(part, level + 1) for part in parts]
