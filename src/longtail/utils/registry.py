"""Names for what the modules of a package register."""

import pkgutil
from importlib import import_module
from typing import Generic, TypeVar

from longtail.utils.errors import check_choice

Entry = TypeVar("Entry")


class Registry(Generic[Entry]):
    """Entries that the modules of a package add when they are imported. All modules are imported at the first look.

    Args:
        setting: that names an entry, such as ``loss.name``; for the error message.
        package: whose modules add the entries.
    """

    def __init__(self, setting: str, package: str):
        self.setting, self.package = setting, package
        self.added: dict[str, Entry] = {}

    def __getitem__(self, name: str) -> Entry:
        """Returns an entry.

        Raises:
            InputError: there is none with this name.
        """
        check_choice(self.setting, name, self.names())
        return self.added[name]

    def names(self) -> list[str]:
        """Returns the names of all entries, sorted."""
        for module in pkgutil.iter_modules(import_module(self.package).__path__, f"{self.package}."):
            import_module(module.name)
        return sorted(self.added)
