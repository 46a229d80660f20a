"""Data sources. Each module of this package registers the data sets that it loads.

A new data set is one new module::

    @register("my-data", num_classes=5, image_size=64)
    def load(settings: DataConfig) -> DataSplits: ...
"""

import pkgutil
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import NamedTuple

from longtail.config.schema import DataConfig
from longtail.data.splits import DataSplits
from longtail.utils.errors import InputError, did_you_mean

Load = Callable[[DataConfig], DataSplits]


class SourceInfo(NamedTuple):
    """A registered data set."""

    load: Load
    num_classes: int | None
    """None if it depends on the files"""

    image_size: int | None
    """Height and width of decoded images, pixels; None for image files"""


_sources: dict[str, SourceInfo] = {}


def register(name: str, *, num_classes: int | None = None, image_size: int | None = None) -> Callable[[Load], Load]:
    """Decorator that makes a function the loader of ``data.name: <name>``."""

    def decorate(load: Load) -> Load:
        _sources[name] = SourceInfo(load, num_classes, image_size)
        return load

    return decorate


def list_sources() -> list[str]:
    """Returns the names of all data sets, sorted."""
    _import_modules()
    return sorted(_sources)


def source_info(name: str) -> SourceInfo:
    """Returns what is registered under a name.

    Raises:
        InputError: there is no such data set.
    """
    names = list_sources()
    if name not in _sources:
        raise InputError(f"data.name is '{name}'; it must be one of {', '.join(names)}{did_you_mean(name, names)}")
    return _sources[name]


def load_source(settings: DataConfig) -> DataSplits:
    """Loads the data set ``data.name``, before any subset or validation split is made.

    Raises:
        InputError: there is no such data set, or its files are missing or wrong.
    """
    return source_info(settings.name).load(settings)


@cache
def _import_modules() -> None:
    for module in pkgutil.iter_modules(__path__, f"{__name__}."):
        import_module(module.name)
