"""Settings of the original code, in a file or a checkpoint, as settings of longtail."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longtail.config.yaml_file import parse_yaml, read_text
from longtail.interop.original.translation import Translation
from longtail.utils.errors import InputError


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
    from longtail.interop.original.ride_settings import translate_ride  # imports PyTorch
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
