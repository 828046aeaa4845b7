"""From a YAML file and key=value overrides to a checked config, and back."""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import asdict, field, make_dataclass, replace
from functools import cache
from os.path import expanduser
from pathlib import Path
from typing import Any, Protocol

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from selfdistill.config import (
    OWN_SECTIONS,
    DecoderConfig,
    GuardConfig,
    ObjectiveConfig,
    RunConfig,
    TeacherConfig,
    short_name,
)
from selfdistill.config_files.limits import check, check_together
from selfdistill.config_files.mistakes import (
    refuse_interpolation,
    refuse_misfits,
    refuse_nested,
    refuse_unknown,
    told,
)
from selfdistill.config_files.plain_yaml import read_sections
from selfdistill.errors import UserError
from selfdistill.redaction import all_redacted


class Sections(Protocol):
    """What a modality says about its sections of the config."""

    @property
    def encoder_config(self) -> type: ...

    @property
    def mask_config(self) -> type: ...

    @property
    def input_config(self) -> type: ...

    @property
    def check(self) -> Callable[[RunConfig], None]: ...


def load_config(
    path: Path, overrides: Sequence[str], sections: Callable[[str], Sections]
) -> RunConfig:
    """Defaults, then the YAML file, then ``key=value`` overrides.

    Args:
        path: a YAML file of plain values (tags and interpolation are refused).
        overrides: such as ``optim.lr=1e-3``.
        sections: finds the modality's sections by its name.

    Raises:
        UserError: no such file, an unknown key (with the nearest valid one), a wrong type, or
            values that contradict each other.
    """
    content = read_sections(path)
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or override.startswith("-") or not all(key.split(".")):
            raise UserError(f"'{override}' is no override; write key=value, such as optim.lr=1e-3")
    _refuse_idle(content, overrides)
    config = build_config(_overridden(content, overrides), sections)
    check_together(config.parts().values())
    return config


def _refuse_idle(content: dict[str, Any], overrides: Sequence[str]) -> None:
    """An override that every modality of the file sets otherwise would change nothing."""
    parts = content.get("modalities")
    if not isinstance(parts, dict) or not parts:
        return
    for override in overrides:
        name = override.partition("=")[0]
        section, _, key = name.partition(".")
        values: list[Any] = [part for part in parts.values() if isinstance(part, dict)]
        if key:
            values = [part.get(section) for part in values]
        if values and all(isinstance(v, dict) and (key or section) in v for v in values):
            raise UserError(f"{name}: every modality sets it; write modalities.NAME.{name}")


def _overridden(content: Any, overrides: Sequence[str]) -> Any:
    """A config's plain values after one override after the other."""
    for override in overrides:
        key, value = override.split("=", 1)
        if "".join(value.split()) == "{}":  # put over a section it would leave what is there
            content = _put_over(content, _parsed(f"{key}="))
        content = _put_over(content, _parsed(override))
    return content


def _put_over(below: Any, above: Any) -> Any:
    """Plain values, section by section; where one of the two is no section, it is ``above``."""
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    return {**below, **{key: _put_over(below.get(key), value) for key, value in above.items()}}


def _parsed(override: str) -> Any:
    """An override as nested plain values; raises as ``load_config``."""
    try:
        return OmegaConf.to_container(OmegaConf.from_dotlist([override]))
    except UnicodeEncodeError as error:  # a name of a file need not be text
        key, value = override.split("=", 1)
        raise UserError(f"{key}: {value!a} is no UTF-8, as all of a config must be") from error
    except yaml.YAMLError as error:
        key, value = override.split("=", 1)
        why = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(
            f"{key}: '{value}' is no YAML ({why}); put what has signs such as * @ % in quotes of "
            "its own, \"data.train=['*.tar']\", and a space behind each colon of a section"
        ) from error
    except OmegaConfBaseException as error:
        raise told(error) from error


HERE = ("run_dir", "resume")
"""Keys that name a place on this machine, in which ~ is its user's home."""
SECTIONS = (
    *OWN_SECTIONS,
    "objective",
    "decoder",
    "teacher",
    "guard",
    "data",
    "eval",
)
OF_A_MODALITY = ("strategy", *SECTIONS)
"""What each modality of a run over several may set for itself."""
SHARED = (
    "teacher.ema_decay",
    "teacher.ema_end_decay",
    "teacher.ema_anneal_end_step",
    "data.workers",
    "data.cache_dir",
    "data.cache_gb",
    "data.timeout",
    "data.allow_pipe",
    "data.skip_bad_shards",
    "data.max_bad_share",
    "eval.every",
)
"""Keys of these sections that the modalities of a run must agree on."""


def build_config(given: dict[str, Any], sections: Callable[[str], Sections]) -> RunConfig:
    """The checked config of nested plain values; see ``load_config``."""
    several = given.get("modalities")
    if not several:
        return _of_one(given, sections)
    if not isinstance(several, dict):
        raise UserError("modalities: must be names with their sections, such as audio: {...}")
    if given.get("modality"):
        raise UserError(
            f"modality: {given['modality']}, but there are modalities, too; remove one of the two"
        )
    shared = {key: value for key, value in given.items() if key not in ("modality", "modalities")}
    for key in (*OWN_SECTIONS, "data.train", "eval.tasks"):
        if _given(shared, key):
            raise UserError(f"{key}: belongs below modalities.NAME in a run over several")
    for section in SECTIONS:
        if not isinstance(shared.get(section) or {}, dict):
            raise UserError(f"{section}: {shared[section]!r} is no section; give it keys")
    parts = {name: _part(name, own, shared, sections) for name, own in several.items()}
    if len(set(map(short_name, parts))) < len(parts):
        raise UserError(f"modalities: {', '.join(parts)} must differ in the last part of the name")
    first = next(iter(parts.values()))
    if len(parts) == 1:
        return first
    return replace(
        first,
        modality="",
        encoder=None,
        mask=None,
        input=None,
        strategy=RunConfig.strategy,
        objective=ObjectiveConfig(),
        decoder=DecoderConfig(),
        teacher=replace(first.teacher, scope=TeacherConfig.scope, copied=[]),
        guard=GuardConfig(),
        data=replace(first.data, train=[], sampling_weight=1.0),
        eval=replace(first.eval, tasks={}),
        modalities=parts,
    )


def _given(values: Any, key: str) -> Any:
    """What stands at a dotted key of nested plain values; None: nothing."""
    for name in key.split("."):
        values = values.get(name) if isinstance(values, dict) else None
    return values


def _part(
    name: str, own: Any, shared: dict[str, Any], sections: Callable[[str], Sections]
) -> RunConfig:
    """The config of one modality of several as if it ran alone."""
    if not isinstance(own, dict):
        raise UserError(
            f"modalities.{name}: must hold the modality's sections; write {{}} for none of its own"
        )
    for section, values in own.items():
        if section not in OF_A_MODALITY:
            near = difflib.get_close_matches(str(section), OF_A_MODALITY, n=1, cutoff=0.0)
            raise UserError(
                f"modalities.{name}.{section}: a modality has no such key of its own; the nearest "
                f"valid one is modalities.{name}.{near[0]}"
            )
        for key in values if isinstance(values, dict) else ():
            if f"{section}.{key}" in SHARED:
                raise UserError(
                    f"modalities.{name}.{section}.{key}: is shared by all modalities; set "
                    f"{section}.{key}"
                )
    try:
        return _of_one({**_put_over(shared, own), "modality": name}, sections)
    except UserError as error:
        raise UserError(f"modalities.{name}: {error}") from error


def _of_one(given: dict[str, Any], sections: Callable[[str], Sections]) -> RunConfig:
    if not isinstance(given.get("modality"), str) or not given["modality"]:
        raise UserError("modality: missing; write modality: image, audio or text")
    modality = sections(given["modality"])
    schema, known = _schema(modality.encoder_config, modality.mask_config, modality.input_config)
    refuse_interpolation(given, "")
    refuse_unknown(given, known, given["modality"])
    try:
        merged: Any = OmegaConf.to_object(OmegaConf.merge(schema, given))
    except (OmegaConfBaseException, TypeError) as error:
        refuse_misfits(schema, given, "")
        raise told(error) from error
    config = RunConfig(**{name: getattr(merged, name) for name in RunConfig.__dataclass_fields__})
    refuse_nested(config, "")
    # no shell does it for what stands in a file
    config = replace(config, **{key: expanduser(getattr(config, key)) for key in HERE})
    check(config)
    modality.check(config)
    return config


@cache  # it takes longer to make than a config to be read
def _schema(encoder: type, mask: type, input: type) -> tuple[DictConfig, Any]:
    """What OmegaConf checks a config of a modality by, and its keys with their defaults."""
    own = [
        ("encoder", encoder, field(default_factory=encoder)),
        ("mask", mask, field(default_factory=mask)),
        ("input", input, field(default_factory=input)),
        ("modalities", dict, field(default_factory=dict)),
        ("run_dir", str, field(default="")),
    ]
    schema = OmegaConf.structured(make_dataclass("Config", own, bases=(RunConfig,), frozen=True))
    return schema, OmegaConf.to_container(schema)


def plain_config(config: RunConfig) -> dict[str, Any]:
    """The config as nested plain values that ``build_config`` reads, to be kept: without the
    secrets that names may hold (see ``redaction``)."""
    given: dict[str, Any] = all_redacted(without_tuples(asdict(replace(config, modalities={}))))
    if not config.modalities:
        return given
    for key in ("modality", "strategy", *OWN_SECTIONS):
        del given[key]
    parts = {name: _own_sections(part) for name, part in config.modalities.items()}
    given["modalities"] = all_redacted(parts)
    return given


def _own_sections(part: RunConfig) -> dict[str, Any]:
    """What a modality has for itself, of which nothing is taken from the shared sections."""
    sections: dict[str, Any] = {"strategy": part.strategy}
    for name in SECTIONS:
        values = asdict(getattr(part, name))
        sections[name] = {
            key: value for key, value in values.items() if f"{name}.{key}" not in SHARED
        }
    plain: dict[str, Any] = without_tuples(sections)
    return plain


def dump_config(config: RunConfig) -> str:
    """The config as YAML that ``load_config`` reads back; see ``plain_config``."""
    return yaml.safe_dump(plain_config(config), sort_keys=False, allow_unicode=True)


def without_tuples(value: Any) -> Any:
    """Nested values with lists in place of tuples, which YAML and JSON do not have."""
    if isinstance(value, dict):
        return {key: without_tuples(part) for key, part in value.items()}
    return [without_tuples(part) for part in value] if isinstance(value, list | tuple) else value
