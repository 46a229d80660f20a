"""What a translation of the original's settings reads and makes."""

from collections.abc import Mapping
from typing import Any, NamedTuple


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
