"""Recipes and settings: finds, merges, checks and prints them. Imports no torch."""

import dataclasses
import logging
import re
from argparse import SUPPRESS
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentParser, set_parsing_settings

from longtail.config.schema import Config
from longtail.config.yaml_file import parse_yaml, read_text
from longtail.utils.errors import InputError, did_you_mean

logger = logging.getLogger(__name__)

DEFAULT_RECIPE, FOLDER_RECIPE = "digits-lt-ride", "folder"

RENAMED = {"data.on_bad_image": "data.on_corrupt_image", "data.max_bad_images": "data.max_corrupt_images"}
"""Settings of earlier versions -> their names now"""

INCIDENTAL = ("device", "track", "data.root", "data.workers", "training.checkpoint_every", "training.cuda_graph")
"""Settings that do not change what is trained"""

_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", NoneType: "null"}

Settings = dict[str, Any]
"""Nested settings, as in a YAML file"""


@dataclasses.dataclass(frozen=True)
class About:
    """Description of a recipe."""

    description: str = ""
    """One line"""

    expected: str = ""
    """Expected accuracy: mean ± standard deviation and the number of seeds, or "one run\""""

    time: str = ""
    """Training time and the hardware it was measured on"""


def list_recipes() -> list[str]:
    """Returns the names of the recipes in the package."""
    return sorted(file.name.removesuffix(".yaml") for file in _shipped().iterdir() if file.name.endswith(".yaml"))


def about(name: str) -> About:
    """Returns the description of a recipe.

    Raises:
        InputError: there is no such recipe.
    """
    return About(**_load(name)[1])


def load_recipe(name: str | Path = DEFAULT_RECIPE, overrides: Mapping[str, Any] | None = None) -> Config:
    """Returns the settings of a recipe or a YAML file.

    Args:
        name: a recipe, see `list_recipes`, or the path of a YAML file.
        overrides: settings to change, such as ``{"training.epochs": 40}``.

    Raises:
        InputError: there is no such recipe or file; or a setting is unknown, of the wrong type or out of range.

    Example:
        >>> config = load_recipe("cifar100-lt-ride", {"training.epochs": 40, "model.num_experts": 4})
        >>> config.training.epochs, config.model.num_experts, config.loss.name
        (40, 4, 'ride')
    """
    return resolve(str(name), nested(overrides or {}))


def resolve(name: str, overrides: Settings | None = None, arguments: Sequence[str] = ()) -> Config:
    """Merges the defaults, a recipe, overrides and command-line arguments (``--section.field value``), in this order.

    Raises:
        InputError: as `load_recipe`.
    """
    settings, overrides = _load(name)[0], _with_new_names(overrides or {}, "overrides")
    arguments, changes = _teacher_settings([_with_new_name(argument) for argument in arguments])
    if changes:
        overrides = merged(overrides, {"distillation": {"teacher_settings": changes}})
    for source, values in ((f" in recipe '{name}'", settings), (" in overrides", overrides)):
        for key in flat(values):
            check_known(key, source)
    for argument in arguments:
        if argument.startswith("--"):
            check_known(argument.removeprefix("--").partition("=")[0])
    if backbone := _last_value("--model.backbone", arguments):
        overrides = merged(overrides, {"model": {"backbone": backbone}})
    return _parsed(_inherited(settings, overrides), arguments)


def _inherited(base: Settings, changes: Settings) -> Settings:
    """Merges as `merged`, but another backbone does not inherit ``experts_from``, the name of a module of the first."""
    old, new = base.get("model"), changes.get("model")
    if not isinstance(old, dict) or not isinstance(new, dict):
        return merged(base, changes)
    if new.get("backbone", old.get("backbone")) != old.get("backbone"):
        old = {name: value for name, value in old.items() if name != "experts_from"}
    return merged(base | {"model": old}, changes)


def _last_value(option: str, arguments: Sequence[str]) -> str:
    """The value of an option that is given as ``--name value`` or ``--name=value``; empty without it."""
    words = [word for argument in arguments for word in argument.split("=", 1)]
    return next((value for name, value in zip(words[-2::-1], words[:0:-1], strict=True) if name == option), "")


def checked_types(config: Config) -> Config:
    """Returns the same settings with checked types; the constructor of `Config` does not check types.

    Raises:
        InputError: a value is of the wrong type, or these are no settings.
    """
    if not isinstance(config, Config):
        raise InputError(f"config is {config!r}; it must be settings, such as load_recipe('{DEFAULT_RECIPE}')")
    return _parsed(as_dict(config))


def to_yaml(config: Config) -> str:
    """Returns all settings as YAML, which `load_recipe` reads."""
    return _dump(as_dict(config))


def config_fingerprint(config: Config) -> str:
    """Returns the settings that determine the trained model, as YAML. Compare fingerprints with `same_fingerprint`."""
    return _dump(_without_incidental(as_dict(config)))


def same_fingerprint(first: str, second: str) -> bool:
    """Whether two fingerprints mean the same settings; they may be of different versions of longtail.

    Settings with an earlier name are renamed. Settings that are absent have their default value.
    """
    try:
        return first == second or _completed(first) == _completed(second)
    except InputError:  # not YAML
        return False


def diff_configs(first: Config, second: Config) -> list[tuple[str, Any, Any]]:
    """Returns the name and both values of each setting that differs and can change the trained model."""
    first_values, second_values = (flat(_without_incidental(as_dict(config))) for config in (first, second))
    return [(key, value, second_values[key]) for key, value in first_values.items() if value != second_values[key]]


def settings_parser(**options: Any) -> ArgumentParser:
    """Returns a parser with one option for each field of `Config`, documented by the docstrings of the fields."""
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False, **options)
    set_parsing_settings(docstring_parse_attribute_docstrings=True)  # for all parsers of the process
    try:
        parser.add_class_arguments(Config, None, fail_untyped=True)
    finally:
        set_parsing_settings(docstring_parse_attribute_docstrings=False)
    for action in parser._actions:
        if action.metavar == "CONFIG":  # a file for a single section: --config replaces it
            action.help = SUPPRESS
    return parser


def flat(settings: Settings, prefix: str = "") -> dict[str, Any]:
    """Returns nested settings as a flat dictionary with keys ``section.field``."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def merged(base: Settings, changes: Settings) -> Settings:
    """Returns nested settings with changes."""
    result = dict(base)
    for key, value in changes.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


def nested(dotted: Mapping[str, Any]) -> Settings:
    """Returns nested settings of a flat dictionary with keys ``section.field``."""
    settings: Settings = {}
    for key, value in dotted.items():
        for part in reversed(key.split(".")):
            value = {part: value}
        settings = merged(settings, value)
    return settings


@cache
def _parser() -> ArgumentParser:
    return settings_parser()  # slow to make


def _parsed(settings: Settings, arguments: Sequence[str] = ()) -> Config:
    try:
        values = _parser().parse_object(settings, defaults=True)
        if arguments:
            values = _parser().parse_args(arguments, namespace=values)
    except Exception as error:  # jsonargparse raises errors of several types, all of them about the input
        raise InputError(_one_line(error)) from error
    kinds = get_type_hints(Config)
    sections = values.as_dict()
    return Config(**{key: kinds[key](**value) if isinstance(value, dict) else value for key, value in sections.items()})


def _shipped() -> Any:
    return resources.files("longtail.config") / "recipes"


def _load(name: str, derived: tuple[str, ...] = ()) -> tuple[Settings, dict[str, str]]:
    """Returns the settings of a recipe with those of its ``base``, and its description.

    Args:
        name: of a recipe, or the path of a file.
        derived: recipes that are based on it.
    """
    if name in list_recipes():
        text, stem = (_shipped() / f"{name}.yaml").read_text(encoding="utf-8"), name
    else:
        path = Path(name)
        if path.is_dir():
            hint = f"use {path / 'config.yaml'}" if (path / "config.yaml").is_file() else "use longtail train FOLDER"
            raise InputError(f"'{name}' is a folder and not a recipe or file; {hint}")
        if not path.is_file():
            hint = did_you_mean(path.name, list_recipes())
            source = f"base of {derived[-1]}: " if derived else ""
            raise InputError(f"{source}no recipe or file '{name}'{hint}; 'longtail recipes' lists the recipes")
        text, stem = read_text(path), path.stem
    settings = _with_new_names(parse_yaml(text, name), name)
    if "rows" in settings:
        raise InputError(f"'{name}' is an experiment; use longtail experiment {name}")
    description = settings.pop("about", {})
    keys = [field.name for field in dataclasses.fields(About)]
    if not isinstance(description, dict) or not set(description) <= set(keys):
        raise InputError(f"{name}: 'about' must be a mapping with the keys {', '.join(keys)}")
    named = settings.pop("base", None)  # None: left empty
    base = "" if named is None else str(named)
    if base and base not in list_recipes():
        base = str(Path(name).parent / base)  # relative to the file that names it
    if base in (name, *derived):
        raise InputError(f"{name}: circular reference: its base '{base}' is based on it")
    inherited = _load(base, (*derived, name))[0] if base else {}
    return _inherited({**inherited, "name": stem}, settings), description


@cache
def _known() -> dict[str, Any]:
    """The default of every setting, by ``section.field``."""
    return flat(as_dict(Config()))


def check_known(key: str, source: str = "") -> None:
    """Checks that there is a setting of this name.

    Raises:
        InputError: there is none, or it is a section.
    """
    if any(setting.startswith(f"{key}.") for setting in _known()):
        raise InputError(f"'{key}'{source} is a section; set one of its fields, such as {key}.field: value")
    if key not in _known():
        meant = {name: name for name in _known()}
        if "." not in key:  # a field without its section; training is more often meant than the router or classifiers
            names = sorted(meant, key=lambda name: name.startswith("training."))
            meant |= {name.rpartition(".")[2]: name for name in names}
        raise InputError(f"unknown setting '{key}'{source}{did_you_mean(key, meant)}")


def _with_new_names(settings: Settings, source: str) -> Settings:
    """Renames settings of earlier versions in nested settings, and warns about them."""
    values = flat(settings)
    old = tuple(key for key in values if key in RENAMED)
    if not old:
        return settings
    _warn_renamed(old, f"{source}: ")
    return nested({RENAMED.get(key, key): value for key, value in values.items()})


def _with_new_name(argument: str) -> str:
    """Renames a setting of earlier versions in a command-line argument, and warns about it."""
    option, equals, value = argument.partition("=")
    name = option.removeprefix("--")
    if option != f"--{name}" or name not in RENAMED:
        return argument
    _warn_renamed((name,), "")
    return f"--{RENAMED[name]}{equals}{value}"


def _teacher_settings(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns the arguments without ``--teacher.section.field value``, and these as ``section.field=value``."""
    rest, words, changes = list[str](), list(arguments), list[str]()
    while words:
        word = words.pop(0)
        if word.startswith("--teacher."):
            name, equals, value = word.removeprefix("--teacher.").partition("=")
            if not equals and not words:
                raise InputError(f"{word} needs a value")
            changes.append(f"{name}={value if equals else words.pop(0)}")
        else:
            rest.append(word)
    return rest, changes


@cache
def _warn_renamed(old: tuple[str, ...], source: str) -> None:
    """Warns once in a process."""
    logger.warning("%s%s", source, ", ".join(f"{key} is now {RENAMED[key]}" for key in old))


def as_dict(config: Config) -> Settings:
    """Returns nested settings as YAML holds them, with lists instead of tuples."""
    return dataclasses.asdict(
        config, dict_factory=lambda items: {key: list(x) if isinstance(x, tuple) else x for key, x in items}
    )


def _dump(settings: Settings) -> str:
    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)


def _without_incidental(settings: Settings) -> Settings:
    return nested({key: value for key, value in flat(settings).items() if key not in INCIDENTAL})


def _completed(fingerprint: str) -> dict[str, Any]:
    """Returns the settings of a fingerprint under today's names, with today's defaults for those that are absent."""
    values = flat(parse_yaml(fingerprint, "fingerprint"))
    complete = _known() | {RENAMED.get(key, key): value for key, value in values.items()}
    return {key: value for key, value in complete.items() if key not in INCIDENTAL}


def _one_line(error: Exception) -> str:
    """Returns jsonargparse's message about a value of the wrong type as one readable line."""
    text = " ".join(str(error).split())
    if unexpected := re.search(r"[Uu]nrecognized arguments: (.*)", text):
        return f"'{unexpected[1]}' is unexpected: a folder comes first, then settings, --section.field value"
    match = re.search(r'key "([\w.]+)":.* (?:Got|Given) value: (.*)$', text)
    if not match:
        return text
    key, value = match.groups()
    section, _, field = key.rpartition(".")
    kinds = get_type_hints(get_type_hints(Config)[section] if section else Config)
    *others, last = expected = _expected(kinds[field])
    words = f"{', '.join(others)} or {last}" if others else last
    return f"{key} is {value!r}; it must be {words}{did_you_mean(value, expected)}"


def _expected(kind: Any) -> list[str]:
    """Returns the values of a type in words."""
    arguments = get_args(kind)
    if get_origin(kind) is Literal:
        return list(arguments)
    if get_origin(kind) in (Union, UnionType):  # `Literal | None` is a Union
        return [words for part in arguments for words in _expected(part)]
    if get_origin(kind) in (list, tuple):
        if get_origin(kind) is list:
            return ["a list of texts" if arguments == (str,) else "a list of numbers"]
        return [f"a list of {len(arguments)} numbers"]
    return [_WORDS[kind]]
