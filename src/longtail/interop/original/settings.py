"""Settings of the original code, in a file or a checkpoint, as settings of longtail."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from longtail.config.yaml_file import parse_yaml, read_text
from longtail.utils.errors import InputError


class Translation(NamedTuple):
    """Settings of the original in the words of longtail."""

    base: str
    """Recipe with the data set's augmentation, which the original has in its code"""

    settings: dict[str, Any]
    """Nested settings, as in a YAML file. Sections loss and training are complete: the original's own defaults stand
    for what its file does not name."""

    ignored: list[str]
    """Settings of the original that change the result and have no counterpart"""

    is_router: bool = False
    """They are about the training of the router, after that of the experts"""


class OriginalSection:
    """One section of the original's settings. It notes what was read, so that the rest can be reported.

    Args:
        settings: all settings.
        path: of the section, keys separated by dots; empty for all settings.
    """

    def __init__(self, settings: Any, path: str = ""):
        for key in path.split(".") if path else ():
            settings = settings.get(key) if isinstance(settings, Mapping) else None
        self._values = settings if isinstance(settings, Mapping) else {}
        self._path, self._read = path, set[str]()

    def get(self, key: str, default: Any = None) -> Any:
        """Returns a value; the default if it is absent or null."""
        self._read.add(key)
        value = self._values.get(key)
        return default if value is None else value

    def __contains__(self, key: str) -> bool:
        return self._values.get(key) is not None

    def unread(self) -> list[str]:
        """Returns the names of the values that nobody has asked for."""
        return [f"{self._path}.{key}" for key, value in self._values.items() if key not in self._read and value]


def is_original(settings: Mapping[str, Any]) -> bool:
    """Whether settings are those of RIDE or RIDE-Swin and not of longtail."""
    return is_swin(settings) or bool({"arch", "data_loader", "trainer", "lr_scheduler", "n_gpu"} & settings.keys())


def is_swin(settings: Mapping[str, Any]) -> bool:
    """Whether settings are those of RIDE-Swin."""
    return bool({"MODEL", "TRAIN", "DATA", "AUG"} & settings.keys())


def translate(settings: Mapping[str, Any]) -> Translation:
    """Returns settings of RIDE or RIDE-Swin in the words of longtail.

    Raises:
        TypeError, ValueError: a value is of another type than in the original.
    """
    from longtail.interop.original.ride_settings import translate_ride
    from longtail.interop.original.swin_settings import translate_swin

    return translate_swin(settings) if is_swin(settings) else translate_ride(settings)


def read_settings(path: Path) -> dict[str, Any]:
    """Reads a settings file of the original: JSON (RIDE), or YAML (RIDE-Swin, also in files named config.json).

    Raises:
        InputError: it cannot be read, is neither, or holds no settings.
    """
    text = read_text(path)
    try:
        settings = json.loads(text)
    except (ValueError, RecursionError) as error:
        if path.suffix == ".json" and text.lstrip().startswith(("{", "[")):
            raise InputError(f"{path}: cannot be read as JSON ({error})") from error
        settings = parse_yaml(text, str(path))
    if not isinstance(settings, dict):
        raise InputError(f"{path}: must contain settings, not a {type(settings).__name__}")
    return settings
