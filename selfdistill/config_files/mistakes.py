"""Keys and values that a config cannot have, told so that they can be mended."""

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from selfdistill.config import OWN_SECTIONS
from selfdistill.errors import UserError


def told(error: Exception) -> UserError:
    """What OmegaConf says, with the key that it says it of."""
    first = str(error).strip().splitlines()[0]
    key = getattr(error, "full_key", None) or "config"
    return UserError(f"{key}: {first}")


def refuse_interpolation(value: Any, key: str) -> None:
    """A resolved config is saved and logged: it must not pull in the environment.

    Raises:
        UserError: a value below ``key`` would.
    """
    if isinstance(value, dict):
        for name, part in value.items():
            refuse_interpolation(part, f"{key}.{name}".lstrip("."))
    elif isinstance(value, list):
        for part in value:
            refuse_interpolation(part, key)
    elif isinstance(value, str) and "${" in value:
        raise UserError(f"{key}: '{value}' interpolates; write the value itself")


def refuse_unknown(given: dict[str, Any], known: Any, modality: str) -> None:
    """Name the first key that there is not, and what may be meant: a key of that name in another
    section, else the one beside it that is most like it.

    Args:
        given: of one modality, as nested plain values.
        known: every key with its default, nested alike.
        modality: whose keys these are.

    Raises:
        UserError: there is such a key.
    """
    every = _dotted(known, "")
    for prefix, name, beside in _unknown(given, known, ""):
        key = f"{prefix}{name}"
        if key in every:
            section = key.rpartition(".")[0]
            raise UserError(f"{key}: in a file a key stands below its section, here {section}:")
        near = [other for other in every if other.rpartition(".")[2] == name]
        near = near or [f"{prefix}{difflib.get_close_matches(name, beside, n=1, cutoff=0.0)[0]}"]
        whose = f" of {modality}" if prefix.partition(".")[0] in OWN_SECTIONS else ""
        raise UserError(f"{key}: no such key{whose}; the nearest valid one is {' or '.join(near)}")


def _unknown(
    given: dict[str, Any], known: Any, prefix: str
) -> Iterator[tuple[str, str, Sequence[str]]]:
    """Keys that there are not: their section, their name, and the names that it has."""
    for name, value in given.items():
        if name not in known:
            yield prefix, str(name), [str(other) for other in known]
        # tasks are named by the user
        elif isinstance(value, dict) and isinstance(known[name], dict) and known[name]:
            yield from _unknown(value, known[name], f"{prefix}{name}.")


def _dotted(known: Any, prefix: str) -> list[str]:
    """The keys in all sections, and the sections."""
    found = []
    for name, value in known.items():
        found.append(f"{prefix}{name}")
        if isinstance(value, dict):
            found += _dotted(value, f"{prefix}{name}.")
    return found


def refuse_misfits(schema: Any, given: dict[str, Any], prefix: str) -> None:
    """Name the key of a wrong type where OmegaConf does not.

    Args:
        schema: a structured config.
        given: known keys, as nested plain values.
        prefix: what stands before them in the names of keys.

    Raises:
        UserError: a value does not fit.
    """
    for name, value in given.items():
        key = f"{prefix}{name}"
        pieces = {key: (value, value)}
        if isinstance(value, dict) and isinstance(schema[name], DictConfig):
            if schema[name]:
                refuse_misfits(schema[name], value, f"{key}.")
                continue
            pieces = {f"{key}.{own}": ({own: part}, part) for own, part in value.items()}
        for piece, (merged, shown) in pieces.items():
            try:
                OmegaConf.merge(schema, {name: merged})
            except (OmegaConfBaseException, TypeError) as error:
                raise _misfit(error, piece, shown) from error


def refuse_nested(section: Any, prefix: str) -> None:
    """Name a list that holds lists or sections where it must not; OmegaConf lets them pass.

    Args:
        section: an instance of a dataclass of the config.
        prefix: what stands before its keys in their names.

    Raises:
        UserError: there is such a list.
    """
    hints = get_type_hints(type(section))
    for name, value in vars(section).items():
        parts = {f"{prefix}{name}": value}
        if isinstance(value, dict):
            parts = {f"{prefix}{name}.{own}": part for own, part in value.items()}
        for key, part in parts.items():
            if is_dataclass(part):
                refuse_nested(part, f"{key}.")
            elif isinstance(part, list) and get_origin(get_args(hints[name])[0]) is not list:
                for index, item in enumerate(part):
                    if isinstance(item, list | dict):
                        raise UserError(
                            f"{key}[{index}]: {item!r} does not fit: it must be one value; leave "
                            "out brackets in the list's own, and the space behind a colon"
                        )


def _misfit(error: Exception, key: str, value: Any) -> UserError:
    full = str(getattr(error, "full_key", None) or key)
    full = full if full.startswith(key) else key
    for part in re.findall(r"[^.\[\]]+", full.removeprefix(key)):
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list | tuple) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
    if value is None:
        return UserError(f"{full}: has no value; give it one, or leave the key out")
    return UserError(f"{full}: {value!r} does not fit: {_in_words(error, value)}")


def _in_words(error: Exception, value: Any) -> str:
    """Why a value does not fit, where OmegaConf tells it by its own types."""
    first = str(error).strip().splitlines()[0]
    if "is not a ListConfig" in first or "is not a TupleConfig" in first:
        return "it must be a list; put it in [ ]"
    if length := re.fullmatch(r"TupleConfig length \d+ does not match .* length (\d+)", first):
        return f"it must have {length[1]} values"
    if first.startswith(("Cannot assign", "Cannot merge", "Invalid type assigned", "Merge error")):
        is_section = isinstance(value, dict)
        return "it is no section" if is_section else "it is a section; set the keys in it"
    # of a member of a tuple it tells placeholders only
    return first.replace("Value '$VALUE' of type '$VALUE_TYPE'", "a member")
