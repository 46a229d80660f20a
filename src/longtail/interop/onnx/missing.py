"""The packages of the extra ``onnx``."""

from importlib import import_module
from typing import Any

from longtail.utils.errors import InputError


def import_extra(*names: str) -> Any:
    """Imports packages of the extra; returns the first.

    Raises:
        InputError: one is not installed.
    """
    try:
        first, *_ = [import_module(name) for name in names]
    except ImportError as error:
        raise InputError(f"{error.name or names[0]} is not installed: pip install 'longtail[onnx]'") from error
    return first
