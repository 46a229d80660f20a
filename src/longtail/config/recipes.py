"""Recipes and command-line settings -> `Config`. Imports no torch."""

import dataclasses
import re
from argparse import SUPPRESS
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml
from jsonargparse import ArgumentParser, set_parsing_settings

from longtail.config.schema import Config
from longtail.config.yaml_file import parse_yaml, read_text
from longtail.utils.errors import InputError, did_you_mean

DEFAULT_RECIPE = "digits-lt-ride"

Settings = dict[str, Any]
"""Nested settings as they stand in a YAML file."""


_INCIDENTAL = {"": ("device",), "data": ("root", "workers"), "training": ("checkpoint_every",)}


@dataclasses.dataclass(frozen=True)
class About:
    """What a recipe says of itself."""

    description: str = ""
    """One line."""

    expected: str = ""
    """Score, mean ± std and the number of seeds, or "one run"."""

    time: str = ""
    """How long it takes, and on what."""


def list_recipes() -> list[str]:
    """The recipes that come with the package."""
    return sorted(f.name.removesuffix(".yaml") for f in _shipped().iterdir() if f.name.endswith(".yaml"))


def about(name: str) -> About:
    """What a recipe says of itself.

    Raises:
        InputError: there is no such recipe.
    """
    return About(**_load(name)[1])


def load_recipe(name: str | Path = DEFAULT_RECIPE, overrides: Mapping[str, Any] | None = None) -> Config:
    """A recipe by name, or a YAML file, with some settings changed: ``{"training.epochs": 40}``.

    Raises:
        InputError: no such recipe or file, an unknown setting, a wrong type, a value out of range.
    """
    return resolve(str(name), _nest(overrides or {}))


def resolve(name: str, overrides: Settings, arguments: Sequence[str] = ()) -> Config:
    """Defaults, then the recipe, then overrides, then command-line arguments (``--section.field value``)."""
    settings, _ = _load(name)
    parser = _parser()
    for where, given in ((f"recipe '{name}'", settings), ("overrides", overrides)):
        for key in flat(given):
            _check_known(key, f" in {where}")
    for option in (argument.partition("=")[0] for argument in arguments if argument.startswith("--")):
        _check_known(option.removeprefix("--"), "")
    try:
        values = parser.parse_object(merged(settings, overrides), defaults=True)
        values = parser.parse_args(list(arguments), namespace=values)
    except Exception as error:  # jsonargparse raises errors of several kinds, all of them about the input
        raise InputError(_one_line(error)) from error
    return make_config(values.as_dict())


def make_config(values: Settings) -> Config:
    """Nested, complete settings of the right types -> checked `Config`."""
    kinds = get_type_hints(Config)
    for section, fields in values.items():
        _check_set(section, fields, kinds[section])
        hints = get_type_hints(kinds[section]) if isinstance(fields, dict) else {}
        for field, value in fields.items() if hints else ():
            _check_set(f"{section}.{field}", value, hints[field])
    return Config(**{key: kinds[key](**value) if isinstance(value, dict) else value for key, value in values.items()})


def _check_set(name: str, value: Any, kind: Any) -> None:
    if value is None and type(None) not in get_args(kind):
        raise InputError(f"{name} is null; it must have a value")


def checked_types(config: Config) -> Config:
    """The same with the types of its fields; constructors alone take 1.5 epochs without looking.

    Raises:
        InputError: a value is of another type.
    """
    try:
        values = _parser().parse_object(_plain(dataclasses.asdict(config)))
    except Exception as error:  # as in `resolve`
        raise InputError(_one_line(error)) from error
    return make_config(values.as_dict())


def to_yaml(config: Config) -> str:
    """Every setting, as YAML that `recipe` reads back into an equal `Config`."""
    return yaml.safe_dump(_plain(dataclasses.asdict(config)), sort_keys=False, allow_unicode=True)


def config_fingerprint(config: Config) -> str:
    """The settings as YAML without those that say where and not what: with the same, the same model comes out."""
    values = dataclasses.asdict(config)
    for section, names in _INCIDENTAL.items():
        for name in names:
            del (values[section] if section else values)[name]
    return yaml.safe_dump(_plain(values), sort_keys=False, allow_unicode=True)


def diff_configs(one: Config, other: Config) -> list[tuple[str, Any, Any]]:
    """The settings that `config_fingerprint` and that differ: name, value in the one, value in the other."""
    given, wanted = (flat(yaml.safe_load(config_fingerprint(config))) for config in (one, other))
    return [(key, given[key], wanted[key]) for key in given if given[key] != wanted[key]]


def settings_parser(**options: Any) -> ArgumentParser:
    """A parser with one option for each field of `Config`, documented by the fields' own words."""
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False, **options)
    set_parsing_settings(docstring_parse_attribute_docstrings=True)  # of all parsers in the process
    try:
        parser.add_class_arguments(Config, None, fail_untyped=True)
    finally:
        set_parsing_settings(docstring_parse_attribute_docstrings=False)
    for action in parser._actions:
        if action.metavar == "CONFIG":  # a file for one section, which we have for all of them
            action.help = SUPPRESS
    return parser


@cache
def _parser() -> ArgumentParser:
    """Made once: it takes longer than all that it parses."""
    return settings_parser()


def _shipped() -> Any:
    return resources.files("longtail.config") / "recipes"


def _load(name: str, heirs: tuple[str, ...] = ()) -> tuple[Settings, dict[str, str]]:
    """Settings and self-description of a recipe, its ``base`` merged in; ``heirs`` are the recipes based on it."""
    if name in list_recipes():
        text, stem = (_shipped() / f"{name}.yaml").read_text(encoding="utf-8"), name
    else:
        path = Path(name)
        if not path.is_file():
            near = did_you_mean(path.name, list_recipes())
            raise InputError(f"no recipe or file '{name}'{near}; 'longtail recipes' lists them")
        text, stem = read_text(path), path.stem
    settings = parse_yaml(text, name)
    described = settings.pop("about", {})
    words = [field.name for field in dataclasses.fields(About)]
    if not isinstance(described, dict) or not set(described) <= set(words):
        raise InputError(f"{name}: 'about' must hold {', '.join(words)}")
    base = str(settings.pop("base", ""))
    if base and base not in list_recipes():
        base = str(Path(name).parent / base)  # beside the file that names it
    if base in (name, *heirs):
        raise InputError(f"{name}: its base '{base}' is based on it")
    inherited = _load(base, (*heirs, name))[0] if base else {}
    return merged({**inherited, "name": stem}, settings), described


@cache
def _known() -> list[str]:
    """Every setting there is, ``section.field``."""
    return list(flat(dataclasses.asdict(Config())))


def _check_known(key: str, where: str) -> None:
    known = _known()
    if any(setting.startswith(f"{key}.") for setting in known):
        raise InputError(f"'{key}'{where} is a section; set one of its fields, such as {key}.field: value")
    if key not in known:
        raise InputError(f"unknown setting '{key}'{where}{did_you_mean(key, known)}")


def flat(settings: Settings, prefix: str = "") -> dict[str, Any]:
    """Nested settings as ``section.field`` and value."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def merged(base: Settings, changes: Settings) -> Settings:
    """Settings with some changed; sections are gone into."""
    result = dict(base)
    for key, value in changes.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


def _nest(dotted: Mapping[str, Any]) -> Settings:
    nested: Settings = {}
    for key, value in dotted.items():
        *sections, last = key.split(".")
        branch: Settings = {last: value}
        for section in reversed(sections):
            branch = {section: branch}
        nested = merged(nested, branch)
    return nested


def _plain(value: Any) -> Any:
    """Tuples as lists: YAML knows no tuples."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _one_line(error: Exception) -> str:
    """Jsonargparse's message about a value of the wrong type as one readable line."""
    text = " ".join(str(error).split())
    match = re.search(r'key "([\w.]+)":.*?Expected an? (.*?)\. Got value: (.*?)(?: Subtypes|$)', text)
    if not match:
        return text
    key, expected, value = match.groups()
    if choices := re.findall(r"'([^']*)'", expected) if "Literal" in expected else []:
        return f"{key} is {value!r}; it must be one of {', '.join(choices)}{did_you_mean(value, choices)}"
    expected = re.sub(r"<class '(\w+)'>", r"\1", expected)
    return f"{key} is {value!r}; it must be of type {expected}"
