"""Data sources. Each module of this package registers the data sets that it loads.

A new data set is one new module::

    @register("my-data", num_classes=5, image_size=64)
    def load(settings: DataConfig) -> DataSplits: ...
"""

from collections.abc import Callable
from typing import NamedTuple

from longtail.config.schema import DataConfig
from longtail.data.splits import DataSplits
from longtail.utils.errors import InputError
from longtail.utils.registry import Registry

Load = Callable[[DataConfig], DataSplits]


class SourceInfo(NamedTuple):
    """A registered data set."""

    load: Load
    num_classes: int | None
    """None if it depends on the files"""

    image_size: int | None
    """Height and width of decoded images, pixels; None for image files"""


_LISTS = ("train_list", "val_list", "test_list")

REGISTRY: Registry[SourceInfo] = Registry("data.name", __name__)


def register(name: str, *, num_classes: int | None = None, image_size: int | None = None) -> Callable[[Load], Load]:
    """Decorator that makes a function the loader of ``data.name: <name>``."""

    def decorate(load: Load) -> Load:
        REGISTRY.added[name] = SourceInfo(load, num_classes, image_size)
        return load

    return decorate


def list_sources() -> list[str]:
    """Returns the names of all data sets, sorted."""
    return REGISTRY.names()


def source_info(name: str) -> SourceInfo:
    """Returns what is registered under a name.

    Raises:
        InputError: there is no such data set.
    """
    return REGISTRY[name]


def load_source(settings: DataConfig) -> DataSplits:
    """Loads the data set ``data.name``, before any subset or validation split is made.

    Raises:
        InputError: there is no such data set, its files are missing or wrong, or it does not use a setting that is set.
    """
    load = source_info(settings.name).load
    for unused in _LISTS if settings.name != "list" else ():
        if getattr(settings, unused) is not None:
            raise InputError(f"data.{unused} is for --data.name list; data.name is '{settings.name}'")
    return load(settings)
